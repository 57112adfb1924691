// One dump at a time: which one stands in the address.

const dumps = [...document.querySelectorAll(".dump")];

function showDump() {
  const chosen = Math.max(0, dumps.findIndex((dump) => dump.dataset.dump === state.values.get("dump")));
  dumps.forEach((dump, place) => { dump.hidden = place !== chosen; });
  const choice = document.getElementById("dump-choice");
  choice.hidden = dumps.length < 2;
  choice.replaceChildren(el("label", {}, "Dump ", el("select", {
    id: "dump", onchange: (event) => { remember({ dump: event.target.value }, true); showDump(); document.getElementById("dump").focus(); },
  }, dumps.map((dump, place) => el("option", { value: dump.dataset.dump, text: dump.dataset.name, selected: place === chosen })))));
}

onView("dumps", showDump);
