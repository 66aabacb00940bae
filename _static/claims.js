// The claims laboratory: a search field and one button per verdict, above the claims. Without this, all are shown.
addEventListener("DOMContentLoaded", () => {
  const labels = [...document.querySelectorAll("article .rb-verdict")];
  const claims = labels.filter(label => label.closest("section").querySelector(":scope > h3")).map(label => ({
    section: label.closest("section"),
    verdict: label.querySelector("strong").textContent,
  }));
  if (!claims.length) return;
  const groups = new Set(claims.map(claim => claim.section.parentElement));
  for (const { section, verdict } of claims) {
    const badge = document.createElement("span");
    badge.className = "rb-verdict-badge";
    badge.textContent = verdict;
    section.querySelector("h3").insertBefore(badge, section.querySelector("h3 > .headerlink"));
  }

  const panel = document.createElement("form");
  panel.className = "rb-claims";
  panel.setAttribute("role", "search");
  panel.innerHTML = `<label>Search the claims <input type="search" autocomplete="off"></label>
    <div role="group" aria-label="Verdicts"></div><p role="status"></p>`;
  [...groups][0].before(panel);
  const [input, buttons, status] = ["input", "div", "p"].map(tag => panel.querySelector(tag));
  for (const verdict of ["true", "true with conditions", "false", "open"]) {
    const count = claims.filter(claim => claim.verdict === verdict).length;
    if (!count) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.value = verdict;
    button.textContent = `${verdict} (${count})`;
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
      show();
    });
    buttons.append(button);
  }

  function show() {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const pressed = [...buttons.querySelectorAll("[aria-pressed=true]")].map(button => button.value);
    let count = 0;
    for (const { section, verdict } of claims) {
      const text = section.textContent.toLowerCase();
      const matches = words.every(word => text.includes(word)) && (!pressed.length || pressed.includes(verdict));
      section.hidden = !matches;
      count += matches;
    }
    const filtered = words.length || pressed.length;
    for (const group of groups) group.hidden = filtered && !group.querySelector("section:not([hidden])");
    status.textContent = `${count} of ${claims.length} claims`;
  }

  // A link to a claim must lead to it, whatever was searched before.
  function unfold() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target?.closest("[hidden]")) return;
    panel.reset();
    for (const button of buttons.children) button.setAttribute("aria-pressed", "false");
    show();
    target.scrollIntoView();
  }

  input.addEventListener("input", show);
  panel.addEventListener("submit", event => event.preventDefault());
  addEventListener("hashchange", unfold);
  show();
});
