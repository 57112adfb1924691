// A page that `axpo watch` serves: asks whether there is a newer one, and takes it while the reader's hands are still.

const live = readJson("live");
const POLL_MS = Number(live.poll_ms);
const STILL_MS = Number(live.still_ms);
const liveButton = document.getElementById("live");
const shelf = (name) => sessionStorage.getItem(`axpo-watch-${name}`);
const put = (name, value) => sessionStorage.setItem(`axpo-watch-${name}`, value);

let lastTouched = -Infinity;
let hasActed = false;
let newest = { version: live.version, awaited: "", message: "", finished: "" };
let isLost = false;

const isPaused = () => shelf("paused") === "yes";
const isStill = () => performance.now() - lastTouched > STILL_MS && (getSelection()?.isCollapsed ?? true);

function tellLive() {
  const isNewer = newest.version !== live.version;
  const steps = document.getElementById("data-curves") ? curves().series.flatMap((one) => one.steps.slice(-1)) : [];
  const at = steps.length ? ` · step ${Math.max(...steps)}` : "";
  liveButton.textContent = isLost ? "✕ not connected" : newest.message ? `! ${isPaused() ? "paused" : "live"}${at}`
    : isPaused() ? `❚❚ paused${at}${isNewer ? " · newer" : ""}` : newest.finished ? `✓ finished${at}` : `● live${at}`;
  liveButton.title = isLost ? "No answer: axpo watch has ended, or the machine is out of reach. Asking on."
    : newest.message || `${newest.awaited ? `Awaited: ${newest.awaited}. ` : ""}${(isPaused() ? "This page stands still. Press to follow the run." : "This page follows the run. Press to hold it still.")}`;
  liveButton.setAttribute("aria-pressed", String(!isPaused()));
  for (const line of document.querySelectorAll("[data-message]")) line.textContent = newest.message;
}

/** The control that has the focus, as it can be found again. */
const controls = () => [...document.querySelectorAll("main a, main button, main input, main select, main summary, main [tabindex]")];

function leave() {
  const focused = document.activeElement;
  put("left", JSON.stringify({
    hash: location.hash, y: scrollY, list: document.querySelector(".finder")?.scrollTop ?? 0,
    theme: document.documentElement.style.colorScheme, shown: document.querySelectorAll("#groups > li").length,
    focus: controls().indexOf(focused), text: focused?.textContent ?? "",
    open: [...document.querySelectorAll("main details")].map((one) => one.open),
  }));
  history.scrollRestoration = "manual";
  location.reload();
}

/** Scroll, focus and colours as they were before the page was taken anew. */
function settle() {
  const left = JSON.parse(shelf("left") ?? "null");
  sessionStorage.removeItem("axpo-watch-left");
  history.scrollRestoration = "auto";
  if (!left || left.hash !== location.hash) return;
  document.documentElement.style.colorScheme = left.theme;
  retheme();
  const details = [...document.querySelectorAll("main details")];
  if (details.length === left.open.length) details.forEach((one, place) => { one.open = left.open[place]; });
  const list = document.getElementById("groups");
  while (list?.childElementCount && list.childElementCount < left.shown && !document.getElementById("more").hidden) listMore();
  let frames = 120;
  const scroll = () => {
    if (hasActed || !frames--) return;
    if (document.documentElement.scrollHeight < left.y + innerHeight) { requestAnimationFrame(scroll); return; }
    scrollTo({ top: left.y, behavior: "instant" });
    const finder = document.querySelector(".finder");
    if (finder) finder.scrollTop = left.list;
    const focused = controls()[left.focus];
    if (focused?.textContent === left.text) focused.focus({ preventScroll: true });
  };
  requestAnimationFrame(scroll);
}

function takeNewer() {
  if (!isLost && !isPaused() && newest.version !== live.version && isStill()) leave();
}

async function ask() {
  if (document.hidden) return;
  try {
    const answer = await fetch("/status", { cache: "no-store", credentials: "omit", redirect: "error" });
    if (!answer.ok) throw new Error(answer.status);
    newest = await answer.json();
    isLost = false;
  } catch {
    isLost = true;
  }
  tellLive();
  takeNewer();
}

for (const name of ["pointerdown", "pointermove", "keydown", "wheel", "touchmove"]) {
  addEventListener(name, () => { lastTouched = performance.now(); hasActed ||= name !== "pointermove"; }, { passive: true, capture: true });
}
liveButton.addEventListener("click", () => {
  put("paused", isPaused() ? "no" : "yes");
  tellLive();
  if (!isPaused() && newest.version !== live.version) leave();
});
document.addEventListener("visibilitychange", ask);
settle();
tellLive();
setInterval(ask, POLL_MS);
ask();
