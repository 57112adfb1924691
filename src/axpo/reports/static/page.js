// The page: its data, small helpers, views, hovers, colours. Text of models reaches the document as text nodes only.

const readJson = (name) => JSON.parse(document.getElementById(`data-${name}`).textContent);
const page = readJson("page");
const once = (make) => { let made; return () => (made ??= make()); };
const pictureTable = once(() => readJson("pictures"));

/** An element. `options`: attributes; `class`, `text`, `title` (or `def`, the name of a definition), `on...` handlers. */
function el(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (name === "class") made.className = value;
    else if (name === "def") made.title = define(value);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** An element of a drawing. */
function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** What a number means: a term of this page by its short name, or a logged key. */
function define(name) {
  return page.definitions[`report/${name}`] ?? page.definitions[name] ?? "";
}

/** `name value` with its definition as hover. */
function number(name, value, definition) {
  return el("span", { def: definition }, `${name} `, el("b", { text: value }));
}

const percentText = (value) => `${(100 * value).toFixed(1)} %`;
const signed = (value) => (Math.abs(value) < 0.005 ? "0" : `${value > 0 ? "+" : "−"}${Math.abs(value).toFixed(2)}`);
const rewardText = (value) => (Number.isInteger(value) ? String(value) : value.toFixed(2));
const secondsText = (value) => (value >= 1 ? `${value.toFixed(2)} s` : `${(1000 * value).toFixed(1)} ms`);
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

function runLabel(index) {
  const run = page.runs[index];
  const arm = page.arms[run.arm];
  return arm.seeds.length > 1 || page.runs.some((other) => other !== run && other.arm === run.arm)
    ? `${arm.label} · seed ${run.seed}` : arm.label;
}

// -- state in the address: #view?name=value&..., so that a reload or a link shows the same ------------------------------

const state = { view: "overview", values: new URLSearchParams() };

const linkTo = (view) => [...document.querySelectorAll("nav a")].find((link) => link.dataset.view === view);

function readAddress() {
  const [view, query] = location.hash.replace(/^#/, "").split("?");
  state.view = document.getElementById(view)?.classList.contains("view") ? view : "overview";
  state.values = new URLSearchParams(query ?? "");
}

/** Remember values; null forgets one. `isStep`: the browser's back button undoes it. */
function remember(changes, isStep = false) {
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === "") state.values.delete(name);
    else state.values.set(name, value);
  }
  history[isStep ? "pushState" : "replaceState"](null, "", `#${state.view}?${state.values}`);
  keepInLink();
}

/** The link to a view leads back to what was last seen there. */
function keepInLink() {
  const link = linkTo(state.view);
  if (link) link.href = `#${state.view}?${state.values}`;
}

const viewListeners = [];
/** Call `show` whenever a view comes up; the first time it can draw itself. */
const onView = (name, show) => viewListeners.push([name, show]);

function showView() {
  for (const view of document.querySelectorAll(".view")) view.hidden = view.id !== state.view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === state.view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  keepInLink();
  for (const [name, show] of viewListeners) if (name === state.view) show();
}

addEventListener("hashchange", () => {
  const before = state.view;
  readAddress();
  showView();
  if (state.view !== before) scrollTo({ top: 0, behavior: "instant" });
});

// -- hovers: the browser's own for a mouse, a bubble for touch and keyboard ---------------------------------------------

const tip = document.getElementById("tip");

function showTip(target) {
  tip.textContent = target.title;
  tip.hidden = false;
  const box = target.getBoundingClientRect();
  const left = Math.max(12, Math.min(box.left, innerWidth - tip.offsetWidth - 12));
  const below = box.bottom + 6 + tip.offsetHeight < innerHeight;
  tip.style.left = `${left}px`;
  tip.style.top = `${below ? box.bottom + 6 : Math.max(6, box.top - tip.offsetHeight - 6)}px`;
}

addEventListener("click", (event) => {
  const target = event.target instanceof Element ? event.target.closest("[title]") : null;
  if (target && target.title && !target.closest("button, a, label, .tok, input, select")) showTip(target);
  else tip.hidden = true;
});
addEventListener("focusin", (event) => {
  if (event.target.matches?.("[data-def]")) showTip(event.target);
  else tip.hidden = true;
});
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true, capture: true });
for (const heading of document.querySelectorAll("[data-def]")) heading.tabIndex = 0;

// -- colours ------------------------------------------------------------------------------------------------------------

const themes = ["light dark", "light", "dark"];
const themeListeners = [];
const darkness = matchMedia("(prefers-color-scheme: dark)");
const retheme = () => themeListeners.forEach((listener) => listener());

document.getElementById("theme").addEventListener("click", () => {
  const now = document.documentElement.style.colorScheme || themes[0];
  const isDark = now === "dark" || (now === themes[0] && darkness.matches);
  document.documentElement.style.colorScheme = isDark ? "light" : "dark";
  retheme();
});
darkness.addEventListener("change", retheme);

/** A colour of the page as scripts that draw need it. */
function color(name, host = document.body) {
  const probe = el("span", { hidden: true });
  probe.style.color = `var(${name})`;
  host.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}
