// Paper is white: print with the light theme, whatever the screen shows.
const root = document.documentElement;
addEventListener("beforeprint", () => {
  root.dataset.screenTheme = root.dataset.theme;
  root.dataset.theme = "light";
});
addEventListener("afterprint", () => {
  root.dataset.theme = root.dataset.screenTheme;
});
