// The gate explorer: an LSTM that chapter 03 trained reads ten digits in the browser.
//
// Each <section class="gate-explorer"> holds its networks in a <script type="application/json">.
// H hidden units, E entries of an embedding; W is (E, H), U (H, H), row by row. Steps count from 0.
"use strict";
(() => {
  const translation = globalThis.gateExplorerTranslation ?? {}; // English -> the page's language
  /** A text in the page's language, with its {names} filled in. */
  const _ = (text, values = {}) =>
    (translation[text] ?? text).replace(/\{(\w+)\}/g, (_whole, name) => values[name]);

  const GATES = { i: _("input gate"), f: _("forget gate"), o: _("output gate") };
  const NAMES = { ...GATES, g: _("candidate"), c: _("cell state"), h: _("hidden state") };
  const STARTS = { zero: _("zero"), xavier: _("xavier") };
  const ENDS = { i: [0, 1], f: [0, 1], o: [0, 1], g: [-1, 1], c: [-5, 5], h: [-1, 1] };
  const GATE_COLOURS = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"];
  const SIGNED_COLOURS = ["#2369bd", "#7b9bcd", "#faf7f6", "#d77f78", "#a9373b"];
  const ADDENDS = 2;

  // the network

  /** The parameters of a network, in the order in which they were written, and its mean gates. */
  function decode(numbers, E, H) {
    const bytes = Uint8Array.from(atob(numbers), (character) => character.charCodeAt(0));
    const all = new Float32Array(bytes.buffer);
    let at = 0;
    const take = (count) => all.subarray(at, (at += count));
    const net = { H, embedding: take(10 * E), mean: { 0: {}, [ADDENDS]: {} } };
    for (const gate of "ifog") net[gate] = { W: take(E * H), U: take(H * H), b: take(H) };
    net.head = { W: take(19 * H), b: take(19) };
    for (const first in net.mean) for (const gate in GATES) net.mean[first][gate] = take(H);
    return net;
  }

  /** `z` (H) plus the product of `v` and `M` (rows, H), in place. */
  function addProduct(z, v, M) {
    for (let k = 0, at = 0; k < v.length; k++) for (let j = 0; j < z.length; j++) z[j] += v[k] * M[at++];
    return z;
  }

  /** Gates and states {i, f, o, g, c, h}, each [step][unit], and the logits of the 19 sums.
   *
   * `held` maps gates to a number, or to one for each unit, that takes the gate's place from step
   * `first` on. */
  function run(net, digits, held = {}, first = 0) {
    const { H } = net, E = net.embedding.length / 10;
    const trace = { i: [], f: [], o: [], g: [], c: [], h: [] };
    let h = new Float64Array(H), c = new Float64Array(H);
    digits.forEach((digit, t) => {
      const x = net.embedding.subarray(digit * E, (digit + 1) * E);
      const now = {};
      for (const gate of "ifog") {
        const { W, U, b } = net[gate];
        const z = addProduct(addProduct(Float64Array.from(b), x, W), h, U);
        now[gate] = z.map(gate === "g" ? Math.tanh : (value) => 1 / (1 + Math.exp(-value)));
        if (gate in held && t >= first) {
          const value = held[gate];
          now[gate] = now[gate].map((_, j) => (typeof value === "number" ? value : value[j]));
        }
      }
      c = c.map((old, j) => now.f[j] * old + now.i[j] * now.g[j]);
      h = c.map((value, j) => now.o[j] * Math.tanh(value));
      for (const [name, values] of Object.entries({ ...now, c, h })) trace[name].push(values);
    });
    const logits = Array.from(net.head.b, (z, k) =>
      h.reduce((sum, value, j) => sum + value * net.head.W[k * H + j], z));
    return { ...trace, logits };
  }

  function softmax(logits) {
    const highest = Math.max(...logits);
    const powers = logits.map((z) => Math.exp(z - highest));
    const total = powers.reduce((a, b) => a + b);
    return powers.map((power) => power / total);
  }

  // the page

  const decimal = (x) => x.toFixed(2).replace("-", "−");
  const percent = (x, places = 1) => `${(100 * x).toFixed(places)} %`;

  function make(tag, properties = {}, ...children) {
    const { aria = {}, ...rest } = properties;
    const node = Object.assign(document.createElement(tag), rest);
    for (const name in aria) node.setAttribute(name === "role" ? name : `aria-${name}`, aria[name]);
    node.append(...children);
    return node;
  }

  const field = (text, control) => make("label", {}, make("span", {}, text), control);

  function choice(options) {
    const items = options.map(([value, text]) => make("option", { value }, text));
    return make("select", {}, ...items);
  }

  const colours = (name) => (ENDS[name][0] < 0 ? SIGNED_COLOURS : GATE_COLOURS);

  /** Red, green and blue of a value on the scale of a gate or state. */
  function colour(name, value) {
    const [low, high] = ENDS[name], stops = colours(name);
    const place = Math.min(1, Math.max(0, (value - low) / (high - low))) * (stops.length - 1);
    const k = Math.min(stops.length - 2, Math.floor(place));
    const part = (text, at) => parseInt(text.slice(at, at + 2), 16);
    return [1, 3, 5].map((at) => {
      const [a, b] = [part(stops[k], at), part(stops[k + 1], at)];
      return Math.round(a + (b - a) * (place - k));
    });
  }

  /** A heat map of one gate or state, units down, digits across; a click chooses step and unit. */
  function heatMap(name, T, H, choose) {
    const canvas = make("canvas", { width: T, height: H, aria: { role: "img" } });
    const stepMark = make("div", { className: "step-mark" }), unitMark = make("div", { className: "unit-mark" });
    const map = make("div", { className: "map" }, canvas, stepMark, unitMark);
    const digitRow = make("div", { className: "digits", aria: { hidden: "true" } });
    const bar = make("div", { className: "bar" });
    bar.style.background = `linear-gradient(to right, ${colours(name)})`;
    const [low, high] = ENDS[name].map((end) => String(end).replace("-", "−"));
    const scale = make("div", { className: "scale", aria: { hidden: "true" } }, low, bar, high);
    map.addEventListener("click", (event) => {
      const box = canvas.getBoundingClientRect();
      const place = (at, size, count) => Math.min(count - 1, Math.floor((at / size) * count));
      choose(place(event.clientX - box.left, box.width, T), place(event.clientY - box.top, box.height, H));
    });
    function draw(values, digits, step, unit, model) {
      const context = canvas.getContext("2d"), image = context.createImageData(T, H);
      values.forEach((column, t) =>
        column.forEach((value, j) => image.data.set([...colour(name, value), 255], 4 * (j * T + t))));
      context.putImageData(image, 0, 0);
      stepMark.style.cssText = `left: ${(100 * step) / T}%; width: ${100 / T}%`;
      unitMark.style.cssText = `top: ${(100 * unit) / H}%; height: ${100 / H}%`;
      digitRow.replaceChildren(...digits.map((digit) => make("span", {}, String(digit))));
      const mean = (column) => decimal(column.reduce((a, b) => a + b) / H);
      canvas.setAttribute("aria-label", _("Heat map of the {name}, {model}. Means over the units, step by step: {means}.",
        { name: NAMES[name], model, means: Array.from(values, mean).join(", ") }));
    }
    const title = make("div", { className: "name" }, NAMES[name]);
    return { node: make("div", {}, title, map, digitRow, scale), draw };
  }

  /** One model with its controls, maps, table and what the record says about it. */
  function panel(title, data, nets, preset, update, choose) {
    const unique = (key) => [...new Set(nets.map((net) => net[key]))];
    const start = choice(unique("start").map((name) => [name, STARTS[name] ?? name]));
    const seed = choice(unique("seed").map((number) => [number, String(number)]));
    const gates = Object.entries(GATES);
    const gate = choice([["", _("none, as trained")], ...gates]);
    const value = choice([["mean", _("its own mean")], ["1", "1"]]);
    const first = choice([[0, _("all")], [ADDENDS, _("from step 3 on")]]);
    seed.value = preset;
    const controls = [[_("Start"), start], [_("Seed"), seed], [_("Gate held"), gate], [_("Held at"), value], [_("Held at steps"), first]];
    for (const [, control] of controls) control.addEventListener("change", update);
    const maps = Object.fromEntries(Object.keys(NAMES).map((name) => [name, heatMap(name, data.digits.length, data.hidden, choose)]));
    const answer = make("p", { className: "answer" }), text = make("p");
    const table = make("table");
    const scroll = make("div", { className: "scroll", tabIndex: 0, aria: { role: "region", label: _("Values of {title}", { title }) } }, table);
    const node = make("section", { aria: { label: title } },
      make("h3", {}, title),
      make("div", { className: "controls" }, ...controls.map(([name, control]) => field(name, control))),
      answer, make("div", { className: "maps" }, ...Object.values(maps).map((map) => map.node)), text,
      make("details", {}, make("summary", {}, _("The values as a table")), scroll));

    /** Run the model on the digits, draw it; return what it answers and the values of one unit. */
    function show(digits, step, unit) {
      const net = nets.find((n) => n.start === start.value && n.seed === Number(seed.value));
      const from = Number(first.value), at = value.value;
      value.disabled = first.disabled = !gate.value;
      const held = gate.value ? { [gate.value]: at === "1" ? 1 : net.mean[from][gate.value] } : {};
      const trace = run(net, digits, held, from);
      const p = softmax(trace.logits), order = [...p.keys()].sort((a, b) => p[b] - p[a]);
      const sum = digits[0] + digits[1];
      const verdict = order[0] === sum ? _("right") : _("wrong, the sum is {sum}", { sum });
      const said = _("{title} predicts {answer}: {verdict}.", { title, answer: order[0], verdict });
      answer.replaceChildren(make("strong", {}, said), " ", _("Probabilities: {list}.",
        { list: order.slice(0, 3).map((k) => `${k} (${decimal(p[k])})`).join(", ") }));

      const model = _("{start} start, seed {seed}", { start: STARTS[net.start] ?? net.start, seed: net.seed });
      for (const name in maps) maps[name].draw(trace[name], digits, step, unit, model);
      const heads = [_("unit"), ...Object.values(NAMES)];
      const line = (j) => make("tr", {}, make("th", { scope: "row" }, String(j + 1)),
        ...Object.keys(NAMES).map((name) => make("td", {}, decimal(trace[name][step][j]))));
      table.replaceChildren(
        make("caption", {}, _("{model}: all units after step {step}, the digit {digit}", { model, step: step + 1, digit: digits[step] })),
        make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
        make("tbody", {}, ...Array.from({ length: data.hidden }, (_unused, j) => line(j))));
      text.textContent = data.record ? recorded(data.record, net, gate.value, at, from) : "";
      const values = Object.keys(NAMES).map((name) => `${NAMES[name]} ${decimal(trace[name][step][unit])}`);
      return { said, read: `${title}: ${values.join(", ")}.` };
    }
    return { node, show };
  }

  /** What the record of chapter 03 says about a model with a gate held, and about all its kind. */
  function recorded(record, net, gate, at, from) {
    const all = record.starts[net.start];
    const name = gate ? `${gate} = ${at}${from ? " from step 3 on" : ""}` : "as trained";
    const facts = {
      one: percent(net.accuracy["as trained"]), all: percent(all.accuracy["as trained"]), n: record.seeds, start: STARTS[net.start] ?? net.start,
      held: percent(net.accuracy[name]), heldAll: percent(all.accuracy[name]), share: percent(all.share, 0),
      answer: record.prediction, digits: record.digits.join(" "), gate: gate && GATES[gate],
    };
    return gate
      ? _("With the {gate} held like this, chapter 03 found this model right on {held} of its sequences, against {one} as trained. The mean over all {n} models with {start} start is {heldAll}, against {all}.", facts)
      : _("Chapter 03 found this model right on {one} of its sequences: all pairs of addends, with every digit at every later place. The mean over all {n} models with {start} start is {all}. Of these models, {share} predict {answer} for {digits}.", facts);
  }

  let count = 0;
  function start(section) {
    const data = JSON.parse(section.querySelector("script[type='application/json']").textContent);
    const nets = data.nets.map((net) => ({ ...net, ...decode(net.numbers, data.embedding, data.hidden) }));
    const T = data.digits.length, help = `gate-explorer-help-${++count}`;
    const typed = make("input", { value: data.digits.join(" "), inputMode: "numeric", autocomplete: "off", aria: { describedby: help } });
    const slider = (value, max) => make("input", { type: "range", min: 1, max, value });
    const step = slider(Math.min(5, T), T), unit = slider(1, data.hidden);
    const compare = make("input", { type: "checkbox" });
    const problem = make("p", { className: "problem", id: help });
    const answers = make("p", { className: "hidden", aria: { live: "polite" } });
    const note = make("p", {}, _("Hidden units have no order: unit 1 of one model is no counterpart of unit 1 of another. A model can be compared with itself: hold a gate in one of the two."));
    const read = make("p", { className: "read", aria: { live: "polite" } });
    const choose = (t, j) => { step.value = t + 1; unit.value = j + 1; update(); };
    const seeds = nets.map((net) => net.seed);
    const panels = [1, 2].map((k) => panel(_("Model {k}", { k }), data, nets, seeds[Math.min(k, seeds.length) - 1], update, choose));

    function update() {
      const digits = [...typed.value.replace(/\s/g, "")].map(Number);
      const sound = digits.length === T && digits.every(Number.isInteger);
      typed.setAttribute("aria-invalid", String(!sound));
      problem.textContent = sound ? "" : _("Type {T} digits from 0 to 9.", { T });
      if (!sound) return;
      panels[1].node.hidden = !compare.checked;
      const [t, j] = [Number(step.value) - 1, Number(unit.value) - 1];
      const shown = panels.slice(0, compare.checked ? 2 : 1).map((one) => one.show(digits, t, j));
      const said = shown.map((one) => one.said).join(" ");
      if (answers.textContent !== said) answers.textContent = said;
      note.hidden = !compare.checked;
      const where = _("Step {step} reads {digit}. Unit {unit}.", { step: t + 1, digit: digits[t], unit: j + 1 });
      read.replaceChildren(where, ...shown.map((one) => make("span", {}, ` ${one.read}`)));
    }
    for (const control of [typed, step, unit, compare]) control.addEventListener("input", update);
    section.append(
      make("div", { className: "controls" }, field(_("{T} digits", { T }), typed), field(_("Step"), step),
        field(_("Hidden unit"), unit), field(_("Compare with a second model"), compare)),
      problem, answers, read, note, ...panels.map((one) => one.node));
    section.dataset.ready = "true";
    section.setAttribute("aria-label", _("Gate explorer"));
    section.explorer = { nets, run };
    update();
  }

  for (const section of document.querySelectorAll(".gate-explorer:not([data-ready])")) start(section);
})();
