// One rollout as a dialogue: what it thought, called, got back and answered; its tokens in colours; its pictures.

const KIND_NAMES = {
  thinking: "thinks", tool_open: "opens a tool call", tool_call: "calls", tool_close: "closes the call",
  tool_result: "gets back", answer: "answers", text: "says", unseen: "result that did not fit any more: never seen",
};
const MODES = { text: "Text", probability: "Probability", advantage: "Advantage", mask: "Mask" };
const TEMPLATE_TOKEN = /<\|[a-z_]{1,30}\|>/g;

const mode = () => (state.values.get("color") in MODES ? state.values.get("color") : "text");

/** Readable text: without the template's own marks. */
const clean = (text) => text.replace(TEMPLATE_TOKEN, "").replace(/<\/?think>/g, "").trim();
const leftOut = (count) => (count ? `… (${count.toLocaleString("en")} more characters)` : "");

// -- pictures -----------------------------------------------------------------------------------------------------------

/** A picture with boxes in 0-1000 of its sides: `{box, kind}` with kind right, wrong or target. */
function picture(pic, boxes, caption, className = "") {
  const [thumbnail, full] = pictureTable()[pic.p] ?? ["", ""];
  const source = thumbnail || full;
  const absent = () => el("span", { class: "picture absent", text: full ? `picture left out of the page: ${full}` : "picture not recorded" });
  const frame = source ? el("span", { class: "picture" }, el("img", { src: source, alt: caption, width: pic.w, height: pic.h, loading: thumbnail ? null : "lazy" })) : absent();
  if (source && !thumbnail) frame.firstChild.onerror = () => frame.replaceWith(absent());
  if (source && boxes.length) {
    const drawing = svg("svg", { viewBox: "0 0 1000 1000", preserveAspectRatio: "none", "aria-hidden": "true" });
    for (const { box: [x1, y1, x2, y2], kind } of boxes) {
      const place = { x: x1, y: y1, width: Math.max(1, x2 - x1), height: Math.max(1, y2 - y1) };
      drawing.append(svg("rect", { ...place, class: "under" }), svg("rect", { ...place, class: kind }));
    }
    frame.append(drawing);
  }
  const shown = full ? el("a", { href: full, target: "_blank", rel: "noreferrer noopener", "aria-label": `${caption}: full picture` }, frame) : frame;
  return el("figure", { class: className }, shown,
    el("figcaption", { def: "picture", text: caption }));
}

function resultPictures(result, group) {
  const figures = [];
  if (result.zoom) {
    const boxes = [{ box: result.zoom.box, kind: result.zoom.good ? "right" : "wrong" }];
    if (group.target && result.zoom.first) boxes.unshift({ box: group.target, kind: "target" });
    figures.push(picture(result.zoom.pic, boxes, "asked for this box"));
  }
  for (const pic of result.pics ?? []) figures.push(picture(pic, [], result.zoom ? "saw this crop" : "saw this picture", "crop"));
  return figures.length ? el("div", { class: "shots" }, figures) : null;
}

// -- tokens -------------------------------------------------------------------------------------------------------------

/** Everything about the token at `position` (from the first after the prompt). */
function tokenFacts(rollout, segment, position, code) {
  const span = rollout.credit.find(([start, stop]) => start <= position && position < stop);
  const isSampled = segment.q !== undefined;
  const isInherited = position < (rollout.from ?? 0);
  return {
    probability: code === undefined ? null : Math.exp(-code / 100),
    advantage: span ? span[2] : null,
    mask: span ? "learns" : isInherited ? "inherited" : isSampled ? "sampled" : "given",
  };
}

const MASK_WORDS = {
  learns: "learns", sampled: "sampled, does not learn here",
  inherited: "inherited from the frozen prefix", given: "given by the tool, never learns",
};

function tokenClass(facts, largest) {
  if (mode() === "probability") {
    if (facts.probability === null) return "mask-given";
    const level = [0.9, 0.7, 0.5, 0.25, 0.05].filter((bound) => facts.probability < bound).length;
    return level ? `prob-${level}` : "";
  }
  if (mode() === "advantage") {
    if (!facts.advantage) return facts.mask === "given" ? "mask-given" : "";
    return `adv-${facts.advantage > 0 ? "p" : "n"}${Math.max(1, Math.min(3, Math.ceil((3 * Math.abs(facts.advantage)) / largest)))}`;
  }
  return `mask-${facts.mask}`;
}

function factsText(facts, position, text, isWhole) {
  const parts = [isWhole ? "whole segment" : `token ${position + 1} ${JSON.stringify(text)}`];
  if (facts.probability !== null) {
    const p = facts.probability;
    parts.push(`${isWhole ? "geometric mean " : ""}p ${p < 0.001 ? "< 0.001" : p.toFixed(3)}`, `ln p ${signed(Math.log(p))}`);
  }
  parts.push(facts.advantage === null ? "no advantage" : `advantage ${signed(facts.advantage)}`, MASK_WORDS[facts.mask]);
  return parts.join(" · ");
}

/** A segment as coloured tokens; as one piece where the run recorded no lengths of tokens. */
function tokenText(rollout, segment, largest) {
  const text = segment.t;
  const pieces = [];
  const add = (from, to, position, code, isWhole = false) => {
    const facts = tokenFacts(rollout, segment, position, code);
    const piece = el("span", { class: `tok ${tokenClass(facts, largest)}`, text: text.slice(from, to).replaceAll("\n", "⏎\n") });
    piece.title = factsText(facts, position, text.slice(from, to).slice(0, 60), isWhole);
    pieces.push(piece);
  };
  if (segment.c) {
    const characters = charOffsets(text, segment.c);
    segment.c.forEach((_, index) => add(characters[index], characters[index + 1], segment.a + index, segment.q?.[index]));
  } else {
    const mean = segment.q?.length ? segment.q.reduce((sum, code) => sum + code, 0) / segment.q.length : undefined;
    add(0, text.length, segment.a, mean, true);
  }
  return el("pre", { class: "tokens" }, pieces, leftOut(segment.more));
}

/** Where each token starts in a JavaScript string: a run counts characters, JavaScript counts halves of the rare ones. */
function charOffsets(text, lengths) {
  const offsets = [0];
  let at = 0;
  for (const length of lengths) {
    for (let count = 0; count < length; count++) at += text.codePointAt(at) > 0xffff ? 2 : 1;
    offsets.push(at);
  }
  return offsets;
}

function legend(rollout) {
  const sample = (className, text) => el("span", { class: `tok ${className}`, text });
  const items = {
    probability: [sample("", "above 0.9"), sample("prob-1", "0.9"), sample("prob-2", "0.7"), sample("prob-3", "0.5"), sample("prob-4", "0.25"), sample("prob-5", "below 0.05"), sample("mask-given", "not sampled")],
    advantage: [sample("adv-p3", "more of this"), sample("adv-p1", "a little"), sample("", "zero or not trained"), sample("adv-n1", "a little less"), sample("adv-n3", "less of this")],
    mask: [sample("mask-learns", "learns"), sample("mask-sampled", "sampled, does not learn"), sample("mask-inherited", "inherited"), sample("mask-given", "given")],
  }[mode()];
  if (!items) return null;
  const hasTokens = rollout.segs.some((segment) => segment.c);
  return el("p", { class: "legend", def: mode() }, items, "point at a token",
    hasTokens ? "" : el("span", { class: "badge warn", def: "whole", text: "by segment: this run recorded no lengths of tokens" }));
}

/** Mouse, touch and arrow keys show what is known of a token. */
function probe(talk) {
  const line = el("div", { class: "probe", role: "status", hidden: true });
  const tokens = () => [...talk.querySelectorAll(".tok:not(.legend .tok)")];
  const show = (token) => {
    talk.querySelector(".tok.here")?.classList.remove("here");
    token.classList.add("here");
    line.hidden = false;
    line.textContent = token.title;
  };
  const point = (event) => { const token = event.target.closest?.(".tok"); if (token && !token.closest(".legend")) show(token); };
  talk.addEventListener("pointerover", point);
  talk.addEventListener("click", point);
  talk.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.target !== talk) return;
    event.preventDefault();
    const all = tokens();
    const at = all.findIndex((token) => token.classList.contains("here"));
    const next = all[Math.max(0, Math.min(all.length - 1, at + by))];
    if (next) { show(next); next.scrollIntoView({ block: "nearest" }); }
  });
  return line;
}

// -- blocks -------------------------------------------------------------------------------------------------------------

/** A call as it is meant: the tool and its arguments; the raw text when it does not parse. */
function callText(segment) {
  let call = null;
  try { call = segment.more ? null : JSON.parse(segment.t); } catch { /* a malformed call is shown as it is */ }
  if (call === null || typeof call !== "object" || typeof call.name !== "string") return [el("pre", { text: segment.t.trim() + leftOut(segment.more) })];
  const rows = Object.entries(call.arguments ?? {}).map(([name, value]) =>
    `${name}: ${typeof value === "string" ? (value.includes("\n") ? `\n${value}` : value) : JSON.stringify(value)}`);
  return [el("pre", { text: [call.name, ...rows].join("\n") })];
}

/** What came back; in colours its text stands among the tokens already. */
function resultBlock(rollout, group, segment) {
  const isRepeated = mode() !== "text" && segment.n > 0;
  return segment.r.map((index) => {
    const result = rollout.results[index];
    const facts = [
      el("span", {}, el("code", { text: result.tool })),
      result.fail ? el("span", { class: "badge bad", title: define(`tools/failures/${result.fail}`), text: result.fail.replaceAll("_", " ") }) : null,
      el("span", { def: "secs", text: secondsText(result.secs) }),
      result.queue ? el("span", { def: "queue", text: `waited ${secondsText(result.queue)}` }) : null,
      result.tries ? el("span", { def: "tries", text: plural(result.tries, "attempt") }) : null,
      result.cached ? el("span", { def: "cached", text: "from cache" }) : null,
      result.cut ? el("span", { def: "cut", text: "cut" }) : null,
      result.zoom ? el("span", { class: `badge ${result.zoom.good ? "good" : "bad"}`, def: "zoom", text: result.zoom.good ? "box shows it" : "box misses it" }) : null,
    ];
    return el("div", { class: `result${result.fail ? " failed" : ""}` }, el("div", { class: "who" }, facts),
      result.text && !isRepeated ? el("pre", { text: result.text + leftOut(result.more) }) : null, resultPictures(result, group));
  });
}

function block(rollout, group, segment, index, largest) {
  const isInherited = segment.a < (rollout.from ?? 0);
  const isText = mode() === "text";
  const isResult = segment.r !== undefined;
  if (isText && !isResult) {
    if (segment.k === "tool_close" || (segment.k === "tool_open" && rollout.segs[index + 1]?.k === "tool_call")) return null;
    if (!clean(segment.t) && !segment.more) return null;
  }
  const span = rollout.credit.find(([start, stop]) => start < segment.a + segment.n && stop > segment.a);
  const notes = [el("span", { text: KIND_NAMES[segment.k] ?? segment.k })];
  if (isInherited) notes.push(el("span", { class: "badge ice", def: "inherited", text: "inherited, frozen" }));
  if (!isResult && !isInherited) notes.push(el("span", { def: "advantage", text: span ? `advantage ${signed(span[2])}` : "does not learn" }));
  if (segment.n) notes.push(el("span", { def: "tokens", text: plural(segment.n, "token") }));
  let body;
  if (!isText && segment.n) body = [tokenText(rollout, segment, largest)];
  else if (isResult) body = [];
  else body = segment.k === "tool_call" ? callText(segment) : [el("pre", { text: clean(segment.t) + leftOut(segment.more) })];
  const failed = isResult && segment.r.some((place) => rollout.results[place].fail);
  return el("div", { class: `block ${segment.k}${isInherited ? " inherited" : ""}${failed && isText ? " failed" : ""}` },
    el("div", { class: "who" }, notes), body, isResult ? resultBlock(rollout, group, segment) : null);
}

/** The dialogue of `group.rollouts[place]`; with `isPrefix` only what was frozen of it. */
function dialogue(group, place, name, isPrefix, redraw) {
  const rollout = group.rollouts[place];
  const frozen = Math.max(0, ...group.rollouts.filter((other) => other.src === place).map((other) => other.from));
  const segments = rollout.segs.filter((segment) => !isPrefix || segment.a < frozen);
  const largest = Math.max(1e-9, ...group.rollouts.flatMap((other) => other.credit.map(([, , value]) => Math.abs(value))));
  const modes = el("fieldset", { class: "modes" }, el("legend", { class: "hidden", text: "Colour of the tokens" }),
    Object.entries(MODES).map(([key, text]) => el("label", { def: key }, el("input", {
      type: "radio", name: `mode-${Math.random().toString(36).slice(2)}`, value: key, checked: key === mode(),
      onchange: () => { remember({ color: key === "text" ? null : key }); redraw(); },
    }), text)));
  const sampled = rollout.segs.flatMap((segment) => segment.q ?? []);
  const mean = sampled.length ? Math.exp(-sampled.reduce((sum, code) => sum + code, 0) / sampled.length / 100) : null;
  const talk = el("section", { class: "card talk", tabindex: "0", "aria-label": `Dialogue of ${name}` },
    el("div", { class: "talk-head" }, el("h3", { text: name }), modes),
    el("p", { class: "numbers" },
      number("reward", rewardText(rollout.reward), "reward"), number("tokens", rollout.n, "tokens"),
      mean === null ? null : number("mean probability", mean.toFixed(2), "mean"),
      rollout.conf === undefined ? null : number("confidence of its call", rollout.conf.toFixed(2), "confidence"),
      rollout.from === undefined ? null : number("tokens inherited", rollout.from, "inherited"),
      el("span", { def: "stop", text: rollout.stop === "answered" ? "ended by itself" : `ended by ${rollout.stop.replaceAll("_", " ")}` }),
      el("span", { def: "wall", text: secondsText(rollout.wall) })),
    legend(rollout),
    segments.map((segment) => block(rollout, group, segment, rollout.segs.indexOf(segment), largest)));
  if (mode() !== "text") talk.append(probe(talk));
  return talk;
}
