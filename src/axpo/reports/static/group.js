// A group: its question, and a tree from the shared prompt through siblings, the frozen prefix and its continuations.

/** Names of rollouts: siblings by number, continuations by the number of their source. */
function nameOf(group, place) {
  const rollout = group.rollouts[place];
  if (rollout.src === undefined) return `try ${siblings(group).indexOf(place) + 1}`;
  const brothers = group.rollouts.flatMap((other, index) => (other.src === rollout.src && other.from !== undefined ? [index] : []));
  return rollout.src < 0 ? `continuation ${brothers.indexOf(place) + 1}` : `call ${siblings(group).indexOf(rollout.src) + 1}.${brothers.indexOf(place) + 1}`;
}

const siblings = (group) => group.rollouts.flatMap((rollout, place) => (rollout.from === undefined ? [place] : []));
const callsOf = (rollout) => rollout.results.map((result) => result.tool);
const opensCall = (rollout) => rollout.segs.some((segment) => segment.k === "tool_open");

/** Advantage of what a rollout learns with; sources learn with their frozen thinking only. */
function creditText(rollout) {
  if (rollout.credit.length === 0) return "does not learn";
  return `advantage ${signed(rollout.credit[0][2])}`;
}

function leaf(view, place) {
  const { group, selected } = view;
  const rollout = group.rollouts[place];
  const tools = [...new Set(callsOf(rollout))];
  const failures = rollout.results.filter((result) => result.fail).length;
  const isSource = group.rollouts.some((other) => other.src === place);
  return el("button", {
    type: "button", class: `node leaf ${rollout.right ? "right" : "wrong"}${view.matches(place) ? "" : " off"}`,
    "aria-pressed": String(selected.place === place && !selected.isPrefix), onclick: () => view.select(place, false),
  },
    el("span", { class: "line" }, el("span", { class: "mark", def: "reward", text: rollout.right ? "✓" : "✗" }),
      el("span", { class: "says", text: rollout.answer || "(no answer)" }),
      tools.length || opensCall(rollout)
        ? el("span", { class: `badge ${failures ? "bad" : "ice"}`, def: "calls", text: tools.length ? tools.join(", ").slice(0, 28) + (rollout.results.length > 1 ? ` ×${rollout.results.length}` : "") : "call" })
        : el("span", { class: "badge", def: "direct", text: "direct" })),
    el("span", { class: "sub" }, el("span", { text: isSource ? `${nameOf(group, place)}, its own call` : nameOf(group, place) }),
      isSource ? null : el("span", { def: "advantage", text: creditText(rollout) }),
      failures ? el("span", { def: "failed", text: `${plural(failures, "failed call")}` }) : null,
      rollout.stop === "answered" ? null : el("span", { def: "stop", text: rollout.stop.replaceAll("_", " ") })));
}

function frozenNode(view, place, continuations) {
  const { group, selected } = view;
  const source = group.rollouts[place];
  const right = continuations.filter((other) => group.rollouts[other].right).length;
  return el("button", {
    type: "button", class: "node frozen", "aria-pressed": String(selected.place === place && selected.isPrefix),
    onclick: () => view.select(place, true),
  },
    el("span", { class: "line" }, el("span", { "aria-hidden": "true", text: "❄" }), el("span", { class: "says", text: `thought of ${nameOf(group, place)}` })),
    el("span", { class: "sub" },
      source.conf === undefined ? null : el("span", { def: "confidence", text: `confidence ${source.conf.toFixed(2)}` }),
      el("span", { def: "prefix", text: creditText(source) }),
      el("span", { def: "recovered", text: `${right} of ${continuations.length} right` })));
}

function tree(view) {
  const { group } = view;
  const branches = new Map();
  group.rollouts.forEach((rollout, place) => {
    if (rollout.src >= 0) branches.set(rollout.src, [...(branches.get(rollout.src) ?? []), place]);
  });
  const orphans = group.rollouts.flatMap((rollout, place) => (rollout.src === -1 ? [place] : []));
  const items = siblings(group).map((place) => {
    const continuations = branches.get(place);
    if (!continuations) return el("li", {}, leaf(view, place));
    return el("li", { class: "ice" }, frozenNode(view, place, continuations),
      el("ul", {}, [place, ...continuations].map((other) => el("li", {}, leaf(view, other)))));
  });
  const root = el("button", { type: "button", class: "node root", def: "prompt", onclick: openPrompt }, el("span", { class: "line" }, el("b", { text: "prompt" })),
    el("span", { class: "sub", def: "siblings", text: plural(siblings(group).length, "try").replace("trys", "tries") }));
  return el("ul", { class: "tree", "aria-label": "Tries of this question", onkeydown: moveInTree },
    el("li", {}, root, el("ul", {}, items, orphans.map((place) => el("li", {}, leaf(view, place))))));
}

/** The whole prompt, at the end of the pane. */
function openPrompt(event) {
  const prompt = event.currentTarget.closest(".pane").querySelector(".prompt");
  prompt.open = true;
  prompt.scrollIntoView({ block: "nearest" });
}

function moveInTree(event) {
  const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (!by) return;
  event.preventDefault();
  const nodes = [...event.currentTarget.querySelectorAll("button")];
  nodes[Math.max(0, Math.min(nodes.length - 1, nodes.indexOf(document.activeElement) + by))]?.focus();
}

/** The question's picture with the target and every first zoom box on it. */
function overviewPictures(group) {
  if (!group.pics.length) return null;
  const boxes = group.target ? [{ box: group.target, kind: "target" }] : [];
  for (const rollout of group.rollouts) {
    for (const { zoom } of rollout.results) if (zoom?.first) boxes.push({ box: zoom.box, kind: zoom.good ? "right" : "wrong" });
  }
  const caption = boxes.length > (group.target ? 1 : 0) ? "zoom boxes of all tries" : "the question's picture";
  return el("div", {}, group.pics.slice(0, 8).map((pic, index) => picture(pic, index ? [] : boxes, index ? `picture ${index + 1}` : caption)));
}

function groupBadges(flags, num) {
  return [
    flags & 1 ? el("span", { class: "badge bad", def: "triggered", text: "triggered" }) : null,
    flags & 2 && !(flags & 4) ? el("span", { class: "badge warn", def: "resampled", text: "not recovered" }) : null,
    flags & 4 ? el("span", { class: "badge good", def: "recovered", text: "recovered" }) : null,
    flags & 1 && !(flags & 2) && num ? el("span", { class: "badge", def: "resampled", text: "not resampled" }) : null,
  ];
}

/** One group with its tree and the dialogue of the selected rollout. */
function pane(view) {
  const { group, place } = view;
  const part = index().parts[place.part];
  const all = siblings(group).map((other) => group.rollouts[other]);
  const withTool = all.filter(opensCall);
  const counted = (list) => `${list.filter((rollout) => rollout.right).length} of ${list.length} right`;
  const redraw = () => view.redraw();
  const figures = overviewPictures(group);
  return el("article", { class: `pane arm-${page.runs[part.run].arm}` },
    el("div", { class: "pane-head" },
      el("div", { class: "row" }, el("span", { class: "badge" }, el("span", { class: "swatch" }), runLabel(part.run)),
        el("span", { class: "badge", def: "step", text: `${part.kind === "eval" ? "evaluation at step" : "step"} ${part.step}` }),
        groupBadges(place.flags, part.kind === "train"), group.category ? el("span", { class: "badge", text: group.category }) : null),
      el("div", { class: "question", text: group.question }),
      el("p", { class: "numbers" }, el("span", { def: "answer" }, "right answer ", el("b", { text: group.answer })),
        el("span", { def: "calls", text: `with a tool: ${counted(withTool)}` }),
        el("span", { def: "direct", text: `direct: ${counted(all.filter((rollout) => !opensCall(rollout)))}` }))),
    el("div", { class: "context" }, figures ?? el("p", { class: "note", text: "no picture" }), tree(view)),
    dialogue(group, view.selected.place, view.selected.isPrefix ? `frozen thought of ${nameOf(group, view.selected.place)}` : nameOf(group, view.selected.place), view.selected.isPrefix, redraw),
    el("details", { class: "prompt" }, el("summary", { class: "note", text: "The whole prompt" }), el("pre", { text: group.prompt })));
}
