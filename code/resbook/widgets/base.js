// What all explorers share. An explorer's own file follows this one and defines `function explore(data)`, which
// returns { show, describe }:
//   show({ settings, local, width, answer }) -> what is to be seen for these settings:
//     picture  an SVG element;  say  one sentence with the main numbers, spoken when it changes;
//     table    { caption, head, rows };  code  the same in Python;  detail  an element, or nothing;
//     hide, most  names of controls that mean nothing here; the largest value of a range, by name, where it varies;
//     drag     (x, y) => settings for the pointer at that point of the picture, or null where nothing can be moved
//   describe(settings) -> a few words for the label of what is pinned.
// `local` is what only this view knows: what is chosen, unfolded, pinned. `answer` is what PyTorch last computed.

const factory = (namespace) => (tag, attributes = {}, ...children) => {
  const element = document.createElementNS(namespace, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
};
const html = factory("http://www.w3.org/1999/xhtml");
const svg = factory("http://www.w3.org/2000/svg");
const mathml = factory("http://www.w3.org/1998/Math/MathML");

// Numbers as in the rest of the book: whole ones with separators, others with three digits or as many as are known.
const whole = (value) => value.toLocaleString("en-GB");
const raised = (power) => [..."" + power].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");
function short(value, digits = 3) {
  if (value === 0) return "0";
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "not a number" : value > 0 ? "∞" : "−∞";
  const [mantissa, power] = Math.abs(value).toExponential(digits - 1).split("e");
  const sign = value < 0 ? "−" : "";
  if (power < -3 || power > 4) return `${sign}${mantissa} × 10${raised(+power)}`;
  return sign + (power >= digits ? whole(+`${mantissa}e${power}`) : (+`${mantissa}e${power}`).toFixed(digits - 1 - power));
}
const bytes = (value) => {
  const units = ["B", "kB", "MB", "GB", "TB"]; // powers of 1000
  const step = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(value, 1)) / 3));
  return `${step ? short(value / 1000 ** step) : value} ${units[step]}`;
};
// A formula as MathML, which every browser draws itself. Strings are split into numbers, names and signs.
const token = (text) => mathml(/^[\d.,\s]+$/.test(text) ? "mn" : /^\p{L}/u.test(text) ? "mi" : "mo", {}, text.trim());
const power = (base, exponent) => mathml("msup", {}, row(base), row(exponent));
const lowered = (text) => [...text].map((c) => "-0123456789"["⁻⁰¹²³⁴⁵⁶⁷⁸⁹".indexOf(c)]).join("").replace("-", "−");
const row = (...parts) => mathml("mrow", {}, parts.flatMap((part) =>
  part instanceof Node ? [part] : (String(part).match(/10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+|\d[\d.,]*|\p{L}+|[^\s\d\p{L}]/gu) ?? [])
    .map((text) => (/^10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]/.test(text) ? power("10", lowered(text.slice(2))) : token(text)))));
const fraction = (over, under) => mathml("mfrac", {}, row(over), row(under));
const formula = (...parts) => mathml("math", { display: "block" }, row(...parts));

// A logarithmic axis from 10^low at `start` to 10^high at `end`, with at most `count` steps between labelled powers.
function logAxis(low, high, start, end, count = 7) {
  const at = (value) => start + ((end - start) * (Math.log10(value) - low)) / (high - low);
  const step = [1, 2, 3, 5, 10, 20].find((s) => (high - low) / s <= count) ?? 50;
  const ticks = [];
  for (let power = Math.ceil(low / step) * step; power <= high; power += step) ticks.push(power);
  return { at, ticks: ticks.map((power) => ({ at: at(10 ** power), label: `10${raised(power)}` })) };
}
const points = (pairs) => pairs.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");

function tableOf({ head, rows, text = 1 }, label) {
  const cell = (value, i, tag, scope) => html(tag, { scope, class: i < text ? "rbw-text" : null }, value);
  return html("table", { "aria-label": label },
    html("thead", {}, html("tr", {}, head.map((value, i) => cell(value, i, "th", "col")))),
    html("tbody", {}, rows.map((values) => {
      const attributes = values.attributes ?? {};
      return html("tr", attributes, values.map((value, i) => cell(value, i, i ? "td" : "th", i ? null : "row")));
    })));
}

function controlOf(spec, change) {
  const name = { "data-setting": spec.name };
  if (spec.kind === "switch") {
    const input = html("input", { type: "checkbox", ...name, onchange: () => change(input.checked) });
    return { element: html("label", { class: "rbw-switch" }, input, " ", spec.label), show: (v) => (input.checked = v) };
  }
  if (spec.kind === "choice") {
    // A change event brings text back; the values themselves may be numbers.
    const select = html("select", { ...name, onchange: () => change(spec.options[select.selectedIndex][0]) },
      spec.options.map(([, text]) => html("option", {}, text)));
    const show = (v) => (select.selectedIndex = spec.options.findIndex(([value]) => value === v));
    return { element: html("label", {}, html("span", {}, spec.label), select), show };
  }
  const limits = { min: spec.least, max: spec.most, step: spec.step };
  const slider = html("input", { type: "range", ...limits, ...name, oninput: () => change(+slider.value) });
  const field = html("input", { type: "number", ...limits, ...name, inputmode: "decimal", "aria-label": `${spec.label}, exact`,
    oninput: () => field.value !== "" && field.validity.valid && change(+field.value), onchange: () => show(+slider.value) });
  const show = (v) => { slider.value = v; if (!field.matches(":focus") || +field.value !== v) field.value = slider.value; };
  const limit = (most) => { slider.max = field.max = most; };
  return { element: html("label", {}, html("span", {}, spec.label), html("span", { class: "rbw-range" }, slider, field)), show, limit };
}

function render({ model, el }) {
  const page = model.get("page"), { show, describe } = explore(page.data);
  const initial = model.get("settings");
  let local = {}, answer = null, request = null, waiting = null, speaking = null, busy = false, code = "", drawn = initial;
  const live = { ...page.live_defaults };

  const set = (changes) => {
    model.set("settings", { ...model.get("settings"), ...changes });
    try { model.save_changes(); } catch (error) { console.warn("the kernel does not hear:", error); }
  };
  const keep = (changes) => { local = { ...local, ...changes }; draw(); };
  const open = (settings) => { local = { pinned: local.pinned }; forget(); set({ ...page.defaults, ...settings }); draw(); };

  const controls = Object.fromEntries(page.controls.map((spec) => [spec.name, controlOf(spec, (v) => set({ [spec.name]: v }))]));
  const presets = page.presets.map(([name, label, settings]) =>
    html("button", { type: "button", "data-preset": name, onclick: () => open(settings) }, label));
  const pin = html("button", { type: "button", "data-do": "pin", onclick: () => {
    const settings = model.get("settings");
    keep({ pinned: local.pinned ? null : { settings, answer, label: answer?.title ?? describe(settings) } });
  } }, "Pin to compare");
  const reset = html("button", { type: "button", "data-do": "reset", onclick: () => { local = {}; forget(); set(initial); draw(); } }, "Start over");

  // What is said is read aloud once a change has settled, not at every step of a slider.
  const picture = html("div", { class: "rbw-picture" }), say = html("p", { class: "rbw-say" });
  const aloud = html("p", { class: "rbw-aloud", "aria-live": "polite" });
  const detail = html("div", { class: "rbw-detail" });
  const caption = html("p", { class: "rbw-caption" });
  const table = html("div", { class: "rbw-scroll", tabindex: 0, role: "region", "aria-label": `${page.title}: table` });
  // No <pre>: the theme's script takes those that need not scroll out of the order of the Tab key, and they may scroll later.
  const listing = html("code", { class: "rbw-code", tabindex: 0, role: "group", "aria-label": "Python code" });
  const copied = html("span", { role: "status" });
  const copy = html("button", { type: "button", "data-do": "copy", onclick: async () => {
    try {
      await navigator.clipboard.writeText(code);
      copied.textContent = " Copied.";
    } catch { // not allowed here: leave it selected
      getSelection().selectAllChildren(listing);
      copied.textContent = " Selected: copy it with the keyboard.";
    }
  } }, "Copy as PyTorch");
  const status = html("span", { role: "status", class: "rbw-status" });
  const compute = html("button", { type: "button", "data-do": "recompute", onclick: ask }, "Recompute in PyTorch");
  const liveControls = page.live_controls.map((spec) => {
    const control = controlOf(spec, (v) => { live[spec.name] = v; control.show(v); });
    control.show(live[spec.name]);
    return control;
  });
  const kernel = html("div", { class: "rbw-kernel", hidden: true },
    html("div", { class: "rbw-controls" }, liveControls.map((c) => c.element)), compute, " ", status);

  const numbers = html("details", { open: page.data.table_open, ontoggle: () => { drawTable(); guardKeys(); } }, html("summary", {}, "Numbers as a table"), caption, table);
  const root = html("div", { class: "rbw rbw-root", role: "group", "aria-label": page.title },
    html("div", { class: "rbw-buttons", role: "group", "aria-label": "Examples" }, presets),
    picture, say, aloud,
    html("div", { class: "rbw-controls" }, page.controls.map((spec) => controls[spec.name].element)),
    html("div", { class: "rbw-buttons" }, pin, reset), kernel,
    ...(page.data.table_open ? [numbers, detail] : [detail, numbers]), // a table that is worked with comes first
    html("details", {}, html("summary", {}, "In Python"), listing, copy, copied));
  el.append(root);

  let shown = {}, width = 0;
  function draw() {
    const started = performance.now(), settings = model.get("settings");
    const scope = root.getRootNode(), focused = root.contains(scope.activeElement) && scope.activeElement.dataset.key;
    drawn = settings;
    shown = show({ settings, local, keep, set, width: width || 640, answer });
    picture.replaceChildren(shown.picture);
    if (say.textContent && say.textContent !== shown.say) {
      clearTimeout(speaking);
      speaking = setTimeout(() => { aloud.textContent = say.textContent; }, 700);
    }
    say.textContent = shown.say;
    drawTable();
    detail.replaceChildren(...[shown.detail ?? []].flat());
    listing.textContent = code = shown.code;
    copied.textContent = "";
    for (const [name, control] of Object.entries(controls)) {
      if (shown.most?.[name]) control.limit(shown.most[name]);
      control.show(settings[name]);
      control.element.hidden = shown.hide?.includes(name) ?? false;
    }
    pin.textContent = local.pinned ? `Unpin “${local.pinned.label}”` : "Pin to compare";
    presets.forEach((button, i) => {
      const wanted = { ...page.defaults, ...page.presets[i][2] };
      button.setAttribute("aria-pressed", String(Object.keys(wanted).every((k) => wanted[k] === settings[k])));
    });
    guardKeys();
    if (focused) root.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
    root.dataset.milliseconds = (performance.now() - started).toFixed(1);
  }

  // A long table takes longer than all else: not while it is closed.
  function drawTable() {
    if (!numbers.open) return;
    caption.textContent = shown.table.caption;
    table.replaceChildren(tableOf(shown.table, shown.table.caption));
  }
  // JupyterLab's own shortcuts take keys from whatever has the focus, unless that very element says no.
  function guardKeys() {
    for (const element of root.querySelectorAll("button, input, select, summary, [tabindex]")) element.dataset.lmSuppressShortcuts = "true";
  }

  // Dragging: the picture is drawn anew at every move, so its frame listens.
  const point = (event) => {
    const box = picture.firstChild.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  picture.addEventListener("pointerdown", (event) => {
    if (event.button || !shown.drag?.(...point(event))) return;
    event.preventDefault();
    picture.setPointerCapture(event.pointerId);
    picture.onpointermove = (move) => set(shown.drag(...point(move), true) ?? {});
    set(shown.drag(...point(event)));
  });
  picture.addEventListener("lostpointercapture", () => { picture.onpointermove = null; }); // released, or taken away

  // The kernel. Nothing above needs one.
  function tell(message) {
    try {
      model.send(message);
      return true;
    } catch {
      return false;
    }
  }
  function ask() {
    clearTimeout(waiting);
    status.textContent = "Computing …";
    const silent = () => { status.textContent = "No answer yet: the kernel is busy, or gone. What you see stays usable."; };
    request = Math.random(); // unlike any other view's, or any before this page was loaded
    busy = tell({ request, settings: { ...model.get("settings"), ...live } });
    if (busy) waiting = setTimeout(silent, 8000);
    else status.textContent = "The kernel cannot be reached. What you see stays usable.";
  }
  const receive = (message) => {
    if (message.device && kernel.hidden) {
      kernel.hidden = false;
      status.textContent = message.device;
    }
    if (request === null || message.request !== request) return; // the answer to a question that is no longer asked
    clearTimeout(waiting);
    if (message.error || message.done) busy = false;
    if (message.error) status.textContent = message.error; // and the last picture stays
    if (message.answer) {
      answer = message.answer;
      status.textContent = answer.status ?? "";
      draw();
    }
  };
  const changed = () => {
    const settings = model.get("settings"), same = (name) => settings[name] === drawn[name] || page.readouts.includes(name);
    if (!Object.keys(settings).every(same)) forget();
    draw();
  };
  // What was computed, or still is, was for other settings.
  function forget() {
    clearTimeout(waiting);
    status.textContent = "";
    if (busy) tell({ stop: true });
    [answer, busy, request] = [null, false, null];
  }
  model.on("msg:custom", receive);
  model.on("change:settings", changed);
  tell({ hello: true }); // without an answer the kernel's part stays hidden

  // A link in the prose, such as #gradients-vanishing, opens that preset.
  const follow = (hash) => {
    const preset = page.presets.find(([name]) => hash === `#${page.name}-${name}`);
    if (preset) open(preset[2]);
    return Boolean(preset);
  };
  const navigated = () => follow(location.hash);
  const clicked = (event) => { // a second time on the same link: no navigation
    const link = event.target.closest?.("a[href]");
    if (link?.hash && link.href === location.href) follow(link.hash);
  };
  window.addEventListener("hashchange", navigated);
  document.addEventListener("click", clicked);
  const observer = new ResizeObserver(() => {
    const now = Math.floor(picture.clientWidth);
    if (now && now !== width) { width = now; draw(); }
  });
  observer.observe(picture);
  draw();
  if (follow(location.hash)) root.scrollIntoView();
  return () => {
    forget();
    observer.disconnect();
    window.removeEventListener("hashchange", navigated);
    document.removeEventListener("click", clicked);
    model.off("msg:custom", receive);
    model.off("change:settings", changed);
  };
}

// Without a kernel: put the module onto every place of this name in the page, each with the state it carries.
function mountAll(name) {
  for (const place of document.querySelectorAll(`[data-explorer="${name}"]:not([data-mounted])`)) {
    const listeners = {}, el = document.createElement("div"), fallback = [...place.childNodes];
    let state = {};
    const model = {
      get: (key) => state[key],
      set: (key, value) => { state[key] = value; (listeners[`change:${key}`] ?? []).forEach((f) => f()); },
      save_changes: () => {},
      send: () => {},
      on: (event, f) => (listeners[event] ??= []).push(f),
      off: () => {},
    };
    place.dataset.mounted = "true";
    place.append(el);
    try {
      state = JSON.parse(place.querySelector("script").textContent);
      render({ model, el });
      fallback.forEach((node) => node.remove());
    } catch (error) { // the picture and the table stay
      console.error(error);
      el.remove();
    }
  }
}
