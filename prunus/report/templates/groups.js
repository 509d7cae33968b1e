"use strict";
// The address decides what is shown: #group=ID or #tensor=NAME, so that links, the back button and the keyboard work.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const all = (selector, from = document) => [...from.querySelectorAll(selector)];
const panel = byId("detail"), model = document.querySelector(".model"), list = byId("groups");
const items = all("a", list), tensors = new Map(all("[data-tensor]").map((e) => [e.dataset.tensor, e]));
const groupLink = (g) => "#group=" + encodeURIComponent(g.id);
const tensorLink = (t) => "#tensor=" + encodeURIComponent(t.name);
const verbClass = (verb) => "verb-" + verb.split(" ")[0];

// Everything a person named goes in as text, never as markup.
function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(options)) {
    if (key === "class") element.className = value; else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

// Index patterns: [first, count, step] stretches of unit 0 and a step from unit to unit, or stretches unit by unit.
function stretches(pattern, unit) {
  return pattern.units ? pattern.units[unit] : pattern.at.map(([first, count, step]) => [first + unit * pattern.step, count, step]);
}
function told(found) {
  const one = ([first, count, step]) => count === 1 ? `${first}` : count === 2 ? `${first}, ${first + step}`
    : step === 1 ? `${first} to ${first + count - 1}` : `${first}, ${first + step}, … ${first + (count - 1) * step}`;
  const shown = found.slice(0, 6).map(one).join("; ");
  return found.length > 6 ? `${shown}; … (${found.reduce((n, s) => n + s[1], 0)} indices)` : shown;
}
// Slices of one module that are cut in the same way: a batch norm's factor, shift and statistics.
function alike(slices) {
  const found = new Map();
  for (const slice of slices) {
    const { name, dims } = data.tensors[slice.tensor];
    const key = JSON.stringify([name.split(".").slice(0, -1), slice.dim, slice.index, dims]);
    found.set(key, [...found.get(key) || [], slice]);
  }
  return found.values();
}

function strip(size, found) {
  const marks = found.flatMap(([first, n, step]) => step === 1 ? [[first, n]] : Array.from({ length: n }, (_, i) => [first + i * step, 1]));
  return make("span", { class: "strip", "aria-hidden": "true" }, ...marks.slice(0, 400).map(([first, n]) => {
    const mark = make("i");
    mark.style.left = `min(${100 * first / size}%, 100% - 2px)`;
    mark.style.width = `max(${100 * n / size}%, 2px)`;
    return mark;
  }));
}

function shapeOf(tensor, dim) {
  const shape = make("span", { class: "shape" }, "[");
  tensor.dims.forEach((d, i) => shape.append(i ? ", " : "", i === dim ? make("b", {}, String(d.size)) : String(d.size)));
  shape.append("]");
  return shape;
}
const short = (n) => n >= 1e9 ? (n / 1e9).toPrecision(3) + " G" : n >= 1e6 ? (n / 1e6).toPrecision(3) + " M" : n.toLocaleString("en");
const plural = (n, one) => `${n} ${one}${n === 1 ? "" : "s"}`;

function showGroup(group) {
  const number = data.groups.indexOf(group) + 1, whole = data.cost;
  const [one, many] = group.kind, tensorCount = new Set(group.slices.map((s) => s.tensor)).size;
  const share = (kind) => whole[kind] ? ` (${(100 * group.cost[kind] / whole[kind]).toPrecision(2)} %)` : "";
  panel.replaceChildren(
    make("h2", {}, `#${number} ${group.id}`),
    make("p", {}, `${group.units} ${group.units === 1 ? one : many}. Taking one out cuts ${plural(tensorCount, "tensor")} and saves ` +
      `${short(group.cost.params)} parameters${share("params")} and ${short(group.cost.macs)} multiply-adds${share("macs")}.`));
  if (group.parts > 1) panel.append(make("p", {}, `They lie in ${group.parts} parts that must stay equally large: as many leave each part.`));
  if (group.with.length) {
    const also = make("p", {}, "Must keep the same fraction as ");
    group.with.forEach((n, i) => also.append(i ? ", " : "", make("a", { href: groupLink(data.groups[n - 1]) }, `#${n} ${data.groups[n - 1].id}`)));
    panel.append(also);
  }
  const input = make("input", { type: "number", min: 0, max: group.units - 1, value: 0, id: "unit" });
  const slide = make("input", { type: "range", min: 0, max: group.units - 1, value: 0, "aria-label": `Which ${one} is marked` });
  panel.append(make("div", { class: "unit" }, make("label", { for: "unit" }, `Mark ${one}`), input, slide, make("span", {}, `of ${group.units}`)));
  const updates = [];
  for (const verb of new Set(group.slices.map((s) => s.verb))) {
    const section = make("div", { class: verbClass(verb) }, make("h3", {}, verb));
    for (const slices of alike(group.slices.filter((s) => s.verb === verb))) {
      const { dim, index } = slices[0], tensor = data.tensors[slices[0].tensor], size = tensor.dims[dim].size;
      const box = make("div", { class: "slice" }), where = make("small"), place = make("span", { class: "place" });
      slices.forEach((s, i) => {
        const { name } = data.tensors[s.tensor];
        box.append(i ? ", " : "", make("a", { href: tensorLink({ name }) }, i ? name.split(".").pop() : name));
      });
      updates.push((unit) => {
        const found = stretches(data.indices[index], unit), many = found.length > 1 || found[0][1] > 1;
        where.textContent = `dimension ${dim}, ${many ? "indices" : "index"} ${told(found)} of ${size}`;
        place.replaceChildren(where, strip(size, found));
      });
      box.append(" ", shapeOf(tensor, dim), place);
      section.append(box);
    }
    panel.append(section);
  }
  const mark = (text) => {
    const unit = Math.min(Math.max(Math.trunc(Number(text)) || 0, 0), group.units - 1);
    slide.value = unit;
    updates.forEach((update) => update(unit));
    return unit;
  };
  input.addEventListener("input", () => mark(input.value));
  input.addEventListener("change", () => { input.value = mark(input.value); });
  slide.addEventListener("input", () => { input.value = mark(slide.value); });
  mark(0);
  for (const slice of group.slices) {
    const row = tensors.get(data.tensors[slice.tensor].name)?.closest(".row");
    if (!row) continue;
    const dim = all(".dim", row)[slice.dim];
    if (!dim.matches(".on")) dim.classList.add("on", verbClass(slice.verb));
    all(`.chip[data-number="${number}"]`, dim).forEach((chip) => chip.classList.add("me"));
    reveal(row);
  }
}

function showTensor(tensor) {
  panel.replaceChildren(make("h2", {}, tensor.name));
  if (tensor.same_as) panel.append(make("p", {}, `It is the same tensor as ${tensor.same_as}.`));
  if (tensor.why) panel.append(make("p", {}, `Fixed: ${tensor.why}.`));
  tensor.dims.forEach((dim, d) => {
    const box = make("div", { class: "slice" }, make("b", {}, `dimension ${d}`), " ", shapeOf(tensor, d));
    for (const n of new Set(dim.terms.flat())) {
      const group = data.groups[n - 1], name = tensor.same_as || tensor.name;
      const slice = group.slices.find((s) => data.tensors[s.tensor].name === name && s.dim === d);
      box.append(make("div", { class: slice ? verbClass(slice.verb) : "" },
        make("a", { href: groupLink(group) }, `#${n} ${group.id}`), make("small", {}, ` ${group.units} ${group.kind[1]}, `),
        make("span", { class: "key" }, slice ? slice.verb : ""), make("small", {}, "this dimension")));
    }
    if (dim.terms.some((groups) => groups.length > 1)) box.append(make("small", {}, "An index is kept when its unit of each of these groups is kept."));
    const rest = dim.why ? `fixed: ${dim.why}` : "belongs to no group and stays as it is";
    if (dim.kept) box.append(make("div", {}, make("small", {}, dim.terms.length ? `${dim.kept} of ${dim.size} indices are in no group${dim.why ? `; ${rest}` : ""}` : rest)));
    panel.append(box);
  });
  const name = tensors.get(tensor.name);
  if (!name) return;
  name.classList.add("chosen");
  reveal(name.closest(".row"));
}

// Opens and marks the modules that a row is in.
function reveal(row) {
  row.classList.add("lit");
  for (let at = row.parentElement; at && at !== model; at = at.parentElement) {
    if (at.matches("li, .own")) at.classList.add("has");
    if (at.matches("details")) {
      at.open = true;
      at.dataset.hits = Number(at.dataset.hits || 0) + 1;
      at.querySelector(":scope > summary .hits").textContent = plural(Number(at.dataset.hits), "slice");
    }
  }
}

function show() {
  const [what, ...rest] = location.hash.slice(1).split("=");
  let name = rest.join("=");
  try { name = decodeURIComponent(name); } catch { /* a hash typed by hand: taken as it is */ }
  const group = what === "group" && data.groups.find((g) => g.id === name);
  const tensor = what === "tensor" && data.tensors.find((t) => t.name === name);
  all(".chosen, .lit, .has, .me, .dim.on").forEach((e) => e.classList.remove("chosen", "lit", "has", "me", "on"));
  all(".dim").forEach((e) => e.classList.remove(...[...e.classList].filter((c) => c.startsWith("verb-"))));
  all("[data-hits]").forEach((e) => { delete e.dataset.hits; e.querySelector(".hits").textContent = ""; });
  items.forEach((a) => a.removeAttribute("aria-current"));
  byId("only").disabled = !(group || tensor);
  if (!group && !tensor) { byId("only").checked = false; model.classList.remove("only"); return; }
  if (group) {
    const item = items.find((a) => Number(a.dataset.number) === data.groups.indexOf(group) + 1);
    item.setAttribute("aria-current", "true");
    item.scrollIntoView({ block: "nearest" });
    showGroup(group);
  } else showTensor(tensor);
  panel.scrollTop = 0;
  const first = document.querySelector(".dim.on") || document.querySelector(".name.chosen");
  if (matchMedia("(max-width: 700px)").matches) panel.scrollIntoView();
  if (first) model.scrollTop += first.getBoundingClientRect().top - model.getBoundingClientRect().top - model.clientHeight / 4;
}

function filter() {
  const text = byId("search").value.trim().toLowerCase(), kind = byId("kind").value, key = byId("sort").value;
  const order = [...items].sort((a, b) => key === "number" ? a.dataset.number - b.dataset.number : b.dataset[key] - a.dataset[key]);
  list.append(...order.map((a) => a.parentElement));
  for (const a of items) {
    const found = `#${a.dataset.number} ${a.textContent}`.toLowerCase().includes(text) && (!kind || a.dataset.kind === kind);
    a.parentElement.hidden = !found;
  }
  byId("none").hidden = items.some((a) => !a.parentElement.hidden);
}

for (const id of ["search", "sort", "kind"]) byId(id).addEventListener("input", filter);
byId("only").addEventListener("change", (event) => model.classList.toggle("only", event.target.checked));
byId("open").addEventListener("click", () => all("details", model).forEach((d) => { d.open = true; }));
byId("shut").addEventListener("click", () => all("details", model).forEach((d) => { d.open = false; }));
addEventListener("hashchange", show);
addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, select");
  if (event.key === "/" && !typing) { event.preventDefault(); byId("search").focus(); }
  if (event.key === "Escape" && event.target.id === "search") { event.target.value = ""; filter(); }
  if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
  const shown = all("li:not([hidden]) > a", list), at = shown.indexOf(document.activeElement);
  if (at < 0 && event.target.id !== "search") return;
  event.preventDefault();
  shown[Math.min(Math.max(at + (event.key === "ArrowDown" ? 1 : -1), 0), shown.length - 1)]?.focus();
});
show();
