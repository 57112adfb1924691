// The rollout browser: filters over the index, the list of groups, one group or two side by side.

const index = once(() => readJson("index"));
const PAGE_SIZE = 30;
const FILTERS = ["run", "kind", "from", "to", "state", "tool", "failure", "reward", "text"];

/** Where the rollouts of each group begin in the columns, and groups in the order they are listed. */
const layout = once(() => {
  const { groups, rollouts, parts } = index();
  const first = new Array(groups.part.length + 1).fill(rollouts.group.length);
  for (let at = rollouts.group.length - 1; at >= 0; at--) first[rollouts.group[at]] = at;
  const order = groups.part.map((_, group) => group).sort((a, b) => {
    const [p, q] = [parts[groups.part[a]], parts[groups.part[b]]];
    return (p.kind === q.kind ? 0 : p.kind === "train" ? -1 : 1) || p.step - q.step || groups.place[a] - groups.place[b] || p.run - q.run;
  });
  const lower = index().questions.map((question) => question.toLowerCase());
  return { first, order, lower };
});

// -- groups in the address: by what they are, so that a link holds when the page is written anew -------------------------

const runKey = (run) => (page.runs.filter((other) => other.name === page.runs[run].name).length > 1 ? String(run) : page.runs[run].name);

function groupKey(group) {
  const { groups, parts, problems } = index();
  const part = parts[groups.part[group]];
  return `${part.kind}-${part.step}~${problems[groups.problem[group]]}~${runKey(part.run)}`;
}

const groupByKey = once(() => new Map(index().groups.part.map((_, group) => [groupKey(group), group])));

/** The group that the address names; null when it names none of this page. */
function chosenGroup(name) {
  const value = state.values.get(name) ?? "";
  const group = groupByKey().get(value) ?? (/^\d+$/.test(value) ? Number(value) : null);
  return group !== null && index().groups.part[group] !== undefined ? group : null;
}

// -- filters ------------------------------------------------------------------------------------------------------------

/** The filters as tests: of a part, of a group, of a rollout (null when every rollout passes). */
function tests() {
  const value = (name) => state.values.get(name) ?? "";
  const bit = (list, word) => (list.indexOf(word) >= 0 ? 1 << list.indexOf(word) : 0);
  const { tools, failures } = index();
  const [run, kind, from, to, text] = [value("run"), value("kind"), value("from"), value("to"), value("text").toLowerCase()];
  const [tool, failure, reward] = [value("tool"), value("failure"), value("reward")];
  const toolBit = bit(tools, tool.replace(/^=/, ""));
  const failureBit = bit(failures, failure);
  const ofRollout = !tool && !failure && !reward ? null : (at) => {
    const { flags, tools: used, failures: failed, reward: rewards } = index().rollouts;
    if (tool === "any" ? !(flags[at] & 2) : tool === "none" ? flags[at] & 2 : tool && !(used[at] & toolBit)) return false;
    if (failure === "any" ? !failed[at] : failure === "none" ? failed[at] : failure && !(failed[at] & failureBit)) return false;
    return reward === "right" ? rewards[at] >= 1 : reward === "wrong" ? rewards[at] < 1 : reward === "part" ? rewards[at] > 0 && rewards[at] < 1 : true;
  };
  const bits = { triggered: [1, 1], quiet: [1, 0], resampled: [2, 2], recovered: [4, 4], vain: [6, 2], skipped: [3, 1] };
  return {
    ofPart: (part) => (!run || part.run === Number(run)) && (!kind || part.kind === kind)
      && (!from || part.step >= Number(from)) && (!to || part.step <= Number(to)),
    ofGroup: (flags, problem) => {
      const [mask, wanted] = bits[value("state")] ?? [0, 0];
      return (flags & mask) === wanted && (!text || layout().lower[problem].includes(text));
    },
    ofRollout,
  };
}

let found = { groups: [], numRollouts: 0, ofRollout: null };

function applyFilters() {
  const started = performance.now();
  const { groups, parts, rollouts } = index();
  const { first, order } = layout();
  const { ofPart, ofGroup, ofRollout } = tests();
  const isOpen = parts.map(ofPart);
  const kept = [];
  let numRollouts = 0;
  for (const group of order) {
    if (!isOpen[groups.part[group]] || !ofGroup(groups.flags[group], groups.problem[group])) continue;
    let count = first[group + 1] - first[group];
    if (ofRollout) {
      count = 0;
      for (let at = first[group]; at < first[group + 1]; at++) if (ofRollout(at)) count++;
      if (!count) continue;
    }
    kept.push(group);
    numRollouts += count;
  }
  found = { groups: kept, numRollouts, ofRollout };
  const matches = document.getElementById("matches");
  matches.replaceChildren(el("span", { def: "matches", text:
    `${plural(kept.length, "group")}, ${numRollouts.toLocaleString("en")} of ${rollouts.group.length.toLocaleString("en")} rollouts` }));
  document.getElementById("groups").replaceChildren();
  listMore();
  document.getElementById("rollouts").dataset.filterMs = (performance.now() - started).toFixed(2);
}

/** The form. Every choice goes into the address. */
function buildFilters() {
  const { parts, tools, failures, rollouts } = index();
  const used = failures.filter((_, bit) => rollouts.failures.some((mask) => mask & (1 << bit)));
  const kinds = new Set(parts.map((part) => part.kind));
  const steps = parts.map((part) => part.step);
  const change = (name) => (event) => { remember({ [name]: event.target.value }); applyFilters(); redrawSoon(); };
  const select = (name, label, options, className) => el("label", { class: className, def: `filter-${name}` }, label,
    el("select", { name, onchange: change(name) }, options.map(([value, text]) =>
      el("option", { value, text, selected: value === (state.values.get(name) ?? "") }))));
  const input = (name, type, label, extra = {}) => el("input", {
    type, name, "aria-label": label, placeholder: label, value: state.values.get(name) ?? "", oninput: change(name), ...extra });
  const bounds = { min: Math.min(...steps), max: Math.max(...steps), inputmode: "numeric" };
  document.getElementById("filters").replaceChildren(
    ...[
      page.runs.length > 1 ? select("run", "Run", [["", "all runs"], ...page.runs.map((_, run) => [String(run), runLabel(run)])], kinds.size > 1 ? "" : "full") : null,
      kinds.size > 1 ? select("kind", "Phase", [["", "all"], ["train", "training"], ["eval", "evaluation"]], page.runs.length > 1 ? "" : "full") : null,
      el("label", { class: "full", def: "step" }, "Steps", el("span", { class: "pair" }, input("from", "number", "from", bounds), input("to", "number", "to", bounds))),
      select("state", "Group", [["", "all groups"], ["triggered", "triggered"], ["recovered", "recovered"], ["vain", "resampled in vain"], ["skipped", "triggered, not resampled"], ["quiet", "not triggered"]], "full"),
      select("tool", "Tool", [["", "any or none"], ["any", "calls a tool"], ["none", "no tool"], ...tools.map((tool) => [`=${tool}`, tool])]),
      select("failure", "Failure", [["", "any or none"], ["any", "a failed call"], ["none", "no failed call"], ...used.map((kind) => [kind, kind.replaceAll("_", " ")])]),
      select("reward", "Reward", [["", "any"], ["right", "right"], ["wrong", "wrong"], ...(rollouts.reward.some((r) => r > 0 && r < 1) ? [["part", "in between"]] : [])]),
      el("label", { def: "filter-text" }, "Question", input("text", "search", "contains")),
      el("button", { type: "button", class: "full", text: "Clear", onclick: clearFilters }),
    ].filter(Boolean));
  document.getElementById("filters").onsubmit = (event) => event.preventDefault();
}

function clearFilters() {
  remember(Object.fromEntries(FILTERS.map((name) => [name, null])));
  buildFilters();
  applyFilters();
  redrawSoon();
}

let waiting = 0;

/** Draw the detail once choosing pauses: the list comes first. */
function redrawSoon() {
  clearTimeout(waiting);
  waiting = setTimeout(redrawDetail, 120);
}

// -- the list -----------------------------------------------------------------------------------------------------------

/** Siblings as circles (direct) and squares (tool), filled when right; continuations behind a flake. */
function strip(group) {
  const { first } = layout();
  const { flags } = index().rollouts;
  const marks = [];
  for (let at = first[group]; at < first[group + 1]; at++) {
    if (flags[at] & 4 && !(flags[at - 1] & 4)) marks.push(el("span", { text: "❄" }));
    const isOff = found.ofRollout && !found.ofRollout(at);
    marks.push(el("i", { class: `${flags[at] & 2 ? "tool" : ""}${flags[at] & 1 ? " right" : ""}${isOff ? " off" : ""}` }));
  }
  return el("span", { class: "strip", def: "strip", "aria-hidden": "true" }, marks);
}

function listItem(group) {
  const { groups, parts, questions, rollouts } = index();
  const part = parts[groups.part[group]];
  const { first } = layout();
  const right = rollouts.flags.slice(first[group], first[group + 1]).filter((flags) => (flags & 5) === 1).length;
  return el("li", {}, el("button", {
    type: "button", class: `arm-${page.runs[part.run].arm}`, "data-group": group,
    "aria-current": group === chosenGroup("group") ? "true" : null, onclick: () => openGroup(group),
  },
    el("span", { class: "meta" }, el("span", { text: runLabel(part.run) }),
      el("span", { def: "step", text: `${part.kind === "eval" ? "eval " : ""}step ${part.step}` }), groupBadges(groups.flags[group], 0),
      el("span", { class: "hidden", text: `${right} right` })),
    el("span", { class: "text", text: questions[groups.problem[group]] || "(no text)" }), strip(group)));
}

function listMore() {
  const list = document.getElementById("groups");
  const start = list.childElementCount;
  list.append(...found.groups.slice(start, start + PAGE_SIZE).map(listItem));
  const left = found.groups.length - list.childElementCount;
  const more = document.getElementById("more");
  more.hidden = left <= 0;
  more.textContent = `Show more (${left.toLocaleString("en")} left)`;
}

// -- one group, or two side by side -------------------------------------------------------------------------------------

const opened = new Map();

/** The groups of a part, unpacked once. */
function readPart(part) {
  if (!opened.has(part)) {
    if (opened.size > 24) opened.delete(opened.keys().next().value);
    opened.set(part, (async () => {
      const packed = Uint8Array.from(atob(document.getElementById(`part-${part}`).textContent), (c) => c.charCodeAt(0));
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
      return new Response(stream).json();
    })());
  }
  return opened.get(part);
}

function placeOf(group) {
  const { groups } = index();
  return { part: groups.part[group], place: groups.place[group], problem: groups.problem[group], flags: groups.flags[group] };
}

/** The most telling rollout: a right continuation, else a call, else the first. */
function telling(group) {
  const { rollouts } = group;
  const right = rollouts.findIndex((rollout) => rollout.from !== undefined && rollout.right);
  return Math.max(0, right >= 0 ? right : rollouts.findIndex(opensCall));
}

async function makeView(group, name) {
  const place = placeOf(group);
  const shown = (await readPart(place.part))[place.place];
  const kept = state.values.get(name);
  const isKept = kept !== null && shown.rollouts[parseInt(kept, 10)] !== undefined;
  return {
    group: shown, place,
    selected: { place: isKept ? parseInt(kept, 10) : telling(shown), isPrefix: isKept && kept.endsWith("f") },
    matches: (other) => !found.ofRollout || found.ofRollout(layout().first[group] + other),
    select: (other, isPrefix) => { remember({ [name]: `${other}${isPrefix ? "f" : ""}` }); redrawDetail(); },
    redraw: () => redrawDetail(),
  };
}

/** Other places where the same question was asked, the same step of another run first. */
function companions(group) {
  const { groups, parts } = index();
  const { part, problem } = placeOf(group);
  const distance = (other) => {
    const there = parts[groups.part[other]];
    return (there.run === parts[part].run ? 1e9 : 0) + (there.kind === parts[part].kind ? 0 : 1e6) + Math.abs(there.step - parts[part].step);
  };
  return layout().order.filter((other) => other !== group && groups.problem[other] === problem).sort((a, b) => distance(a) - distance(b));
}

function describeGroup(group) {
  const part = index().parts[placeOf(group).part];
  return `${runLabel(part.run)} · ${part.kind === "eval" ? "evaluation at " : ""}step ${part.step}`;
}

function actions(group, other) {
  const others = companions(group);
  const choose = (one) => { remember({ with: one === null ? null : groupKey(one), otherTry: null }); redrawDetail(); };
  return el("div", { class: "actions" },
    el("button", { type: "button", class: "back", text: "← Groups", onclick: () => { remember({ group: null, try: null, with: null }); redrawDetail(); } }),
    el("button", { type: "button", text: "‹", "aria-label": "Previous group", title: "Previous group (k)", onclick: () => step(-1) }),
    el("button", { type: "button", text: "›", "aria-label": "Next group", title: "Next group (j)", onclick: () => step(1) }),
    others.length && other === null ? el("button", { type: "button", text: "Side by side", def: "compare", onclick: () => choose(others[0]) }) : null,
    other !== null ? el("label", {}, "beside ", el("select", { "aria-label": "Group beside this one", onchange: (event) => choose(Number(event.target.value)) },
      others.slice(0, 200).map((one) => el("option", { value: String(one), text: describeGroup(one), selected: one === other })))) : null,
    other !== null ? el("button", { type: "button", text: "One only", onclick: () => choose(null) }) : null,
    others.length ? null : el("span", { class: "note", text: "asked only once in what is shown" }));
}

let drawing = 0;

async function redrawDetail() {
  const mine = ++drawing;
  const [group, other] = [chosenGroup("group"), chosenGroup("with")];
  const detail = document.getElementById("detail");
  const browser = document.querySelector(".browser");
  browser.classList.toggle("reading", group !== null);
  browser.classList.toggle("wide", group !== null && other !== null);
  for (const button of document.querySelectorAll("#groups button")) {
    if (Number(button.dataset.group) === group) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  if (group === null) {
    detail.replaceChildren(el("p", { class: "empty", text: found.groups.length ? "Choose a group." : "No group matches these filters." }));
    return;
  }
  const views = [await makeView(group, "try"), ...(other === null ? [] : [await makeView(other, "otherTry")])];
  if (mine !== drawing) return;
  const focused = detail.contains(document.activeElement) ? focusPath(detail) : null;
  detail.replaceChildren(actions(group, other), el("div", { class: `panes${other === null ? "" : " two"}` }, views.map(pane)),
    el("p", { class: "note keys" }, el("kbd", { text: "j" }), " ", el("kbd", { text: "k" }), " next and previous group · ",
      el("kbd", { text: "↑" }), " ", el("kbd", { text: "↓" }), " in the tree · ", el("kbd", { text: "1" }), "–", el("kbd", { text: "4" }), " colours · ",
      el("kbd", { text: "←" }), " ", el("kbd", { text: "→" }), " from token to token in a dialogue"));
  if (focused !== null) detail.querySelectorAll("button, input, select, [tabindex]")[focused]?.focus({ preventScroll: true });
}

/** The place of the focused control among all of them: drawing again must not lose it. */
const focusPath = (detail) => [...detail.querySelectorAll("button, input, select, [tabindex]")].indexOf(document.activeElement);

function openGroup(group) {
  const wasReading = document.querySelector(".browser").classList.contains("reading");
  remember({ group: groupKey(group), try: null, with: null, otherTry: null }, !wasReading);
  redrawDetail();
  if (!wasReading || isNarrow.matches) scrollTo({ top: 0, behavior: "instant" });
}

function step(by) {
  const at = found.groups.indexOf(chosenGroup("group"));
  const next = found.groups[Math.max(0, Math.min(found.groups.length - 1, at + by))];
  if (next === undefined) return;
  while (document.getElementById("groups").childElementCount <= found.groups.indexOf(next)) listMore();
  openGroup(next);
  document.querySelector(`#groups button[data-group="${next}"]`)?.scrollIntoView({ block: "nearest" });
}

/** Show the rollouts of the recorded step nearest to `step`. */
function openStep(step) {
  const near = index().parts.filter((part) => part.kind === "train").sort((a, b) => Math.abs(a.step - step) - Math.abs(b.step - step))[0];
  if (!near) return;
  state.view = "rollouts";
  remember({ from: String(near.step), to: String(near.step), kind: "train", group: null, with: null });
  showView();
}

const isNarrow = matchMedia("(max-width: 900px)");

const prepareRollouts = once(() => {
  if (isNarrow.matches) document.getElementById("filter-box").open = false;
  document.getElementById("more").onclick = listMore;
  return true;
});

function startRollouts() {
  prepareRollouts();
  buildFilters();
  applyFilters();
  if (chosenGroup("group") === null && found.groups.length && !isNarrow.matches) {
    remember({ group: groupKey(found.groups.find((group) => index().groups.flags[group] & 4) ?? found.groups[0]), try: null });
  }
  redrawDetail();
}

addEventListener("keydown", (event) => {
  if (state.view !== "rollouts" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches?.("input:not([type=radio]), select, textarea")) return;
  const modeKeys = Object.keys(MODES);
  if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
  else if (modeKeys[Number(event.key) - 1]) { remember({ color: event.key === "1" ? null : modeKeys[Number(event.key) - 1] }); redrawDetail(); }
});

if (document.getElementById("rollouts")) onView("rollouts", startRollouts);
