// The batch normalisation explorer. A few values are few enough to compute here, in float64, by the chapter's formulas.

function explore(data) {
  const { values, epsilon, channels, side, patterns, refusal } = data, layers = Object.fromEntries(data.layers);

  const total = (list) => list.reduce((a, b) => a + b, 0);
  const mean = (list) => total(list) / list.length;
  const variance = (list) => mean(list.map((v) => (v - mean(list)) ** 2)); // divided by N: the biased one
  const dot = (a, b) => total(a.map((v, i) => v * b[i]));
  const seen = { mean: mean(values), variance: (variance(values) * values.length) / (values.length - 1) }; // in each step of training

  function running({ momentum, steps }) {
    let state = { mean: 0, variance: 1 };
    const blend = (key) => (1 - momentum) * state[key] + momentum * seen[key];
    for (let i = 0; i < steps; i++) state = { before: state, mean: blend("mean"), variance: blend("variance") };
    return state;
  }

  // The values after each of the four stages, and the gradient that goes back through them.
  function compute(settings) {
    const { batch, outlier, gamma, beta, pattern } = settings, training = settings.mode === "training";
    const x = [...values.slice(0, batch - 1), outlier];
    const used = training ? { mean: mean(x), variance: variance(x) } : running(settings);
    const s = Math.sqrt(used.variance + epsilon), centred = x.map((v) => v - used.mean), hat = centred.map((v) => v / s);
    const g = hat.map((h, i) => ({ equal: 1, one: i === batch - 1 ? 1 : 0, xhat: h, alternating: i % 2 ? -1 : 1 })[pattern]);
    const shifted = g.map((v) => v - mean(g)), along = dot(g, hat) / batch;
    const left = shifted.map((v, i) => v - hat[i] * along), result = (training ? left : g).map((v) => (gamma / s) * v);
    const stages = [x, centred, hat, hat.map((v) => gamma * v + beta)];
    return { ...used, settings, training, s, hat, stages, g, shifted, left, along, result, refused: training && batch === 1 };
  }

  // Which maps share mean and variance with the marked one, and how many values that makes.
  const marked = ({ image, batch, channel }) => ({ image: Math.min(image, batch), channel });
  const groupOf = (channel, groups) => Math.floor(((channel - 1) * groups) / channels);
  const share = {
    batch: (i, j, at) => j === at.channel,
    layer: (i, j, at) => i === at.image,
    instance: (i, j, at) => i === at.image && j === at.channel,
    group: (i, j, at, groups) => i === at.image && groupOf(j, groups) === groupOf(at.channel, groups),
  };
  const means = (layer, { batch, groups }) => ({ batch: channels, layer: batch, instance: batch * channels, group: batch * groups })[layer];
  const perMean = (layer, settings) => (settings.batch * channels * side * side) / means(layer, settings);

  // Numbers and words.
  const signed = (text) => text.replace("-", "−");
  const number = (v, digits = 2) =>
    Math.abs(v) < 1e-12 ? "0" : Math.abs(v) < 0.5 * 10 ** -digits ? short(v, 2) : signed(v.toFixed(digits)); // below: rounding
  const one = (v) => signed(v.toFixed(1));
  const given = (v) => signed(`${+v.toFixed(2)}`); // a setting, as it was set
  const plus = (v, text = number) => `${v < 0 ? "−" : "+"} ${text(Math.abs(v))}`;
  const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
  const nameOf = (k, batch) => `x${"₁₂₃₄₅₆₇₈"[k]}${k === batch - 1 ? " ◆" : ""}`;
  const modeOf = ({ mode, steps }) => (mode === "training" ? "Training" : `Evaluation after ${plural(steps, "step")} of training`);
  const layerOf = ({ layer, groups }) => `${layers[layer]}${layer === "group" ? ` of ${plural(groups, "group")}` : ""}`;

  function describe(settings) {
    const { view, mode, batch, outlier, pattern } = settings;
    if (view === "axes") return `${layerOf(settings)}, N = ${batch}`;
    return `${mode}, N = ${batch}, ${view === "gradient" ? `g ${patterns[pattern]}` : `movable value ${one(outlier)}`}`;
  }

  function sentence(settings, n) {
    if (settings.view === "axes") return aboutAxes(settings);
    const { view, batch, outlier, beta, pattern } = settings, used = `mean ${number(n.mean)} and variance ${number(n.variance)}`;
    if (n.refused) {
      return `Training with a single value: it is its own mean and the variance is 0, so x̂ is 0 whatever the value. The output would be β = ${given(beta)}` +
        `${view === "gradient" ? ", the gradient 0" : ""}; but PyTorch refuses. ValueError: ${refusal}`;
    }
    if (view === "gradient") {
      const why = !n.training ? "The running statistics are constants: g is rescaled, and nothing is taken out of it."
        : pattern === "equal" ? "A common shift of all inputs changes no output, so nothing of g is left: every gradient is 0."
          : n.variance ? "Without ε and rounding, both would be 0." : "With no variance, only ε keeps this from a division by 0.";
      return `${modeOf(settings)}, ${used}; g: ${patterns[pattern]}. The gradient of x sums to ${number(total(n.result))}, ` +
        `and its product with x̂ is ${number(dot(n.result, n.hat))}. ${why}`;
    }
    const y = n.stages[3];
    return `${modeOf(settings)}, ${plural(batch, "value")}, normalised with ${used}. The output has mean ${number(mean(y))} and standard deviation ` +
      `${number(Math.sqrt(variance(y)))}; the movable value ${one(outlier)} becomes x̂ = ${number(n.hat.at(-1))} and y = ${number(y.at(-1))}.`;
  }

  function aboutAxes(settings) {
    const { batch, layer, groups } = settings, count = means(layer, settings), name = layerOf(settings);
    const running_ = layer === "batch" ? "Running statistics are kept, for evaluation." : "Nothing is kept: training and evaluation are one function.";
    const others = layer !== "batch" ? "does not depend on the others" : batch > 1 ? "depends on the others in training" : "has no others to depend on";
    const same = layer !== "group" ? "" : groups === 1 ? " This is layer norm." : groups === channels ? " This is instance norm." : "";
    return `${name[0].toUpperCase()}${name.slice(1)}, ${plural(batch, "image")} of ${channels}×${side}×${side}: ` +
      `${perMean(layer, settings)} values for each mean, ${plural(count, "mean")}.${same} ${running_} The output for one image ${others}.`;
  }

  // In evaluation the other values of the batch change nothing, nor does the movable one change g, unless g is made of it.
  const unused = {
    values: ({ mode }) => ["layer", "groups", "pattern", "channel", "image", ...(mode === "training" ? ["momentum", "steps"] : ["batch"])],
    axes: ({ layer }) => ["mode", "pattern", "outlier", "gamma", "beta", "momentum", "steps", ...(layer === "group" ? [] : ["groups"])],
    gradient: ({ mode, pattern }) => ["layer", "groups", "beta", "channel", "image",
      ...(mode === "training" ? ["momentum", "steps"] : [pattern === "xhat" ? "batch" : "outlier"])],
  };

  function show({ settings, local, set, width }) {
    const n = compute(settings), { pinned } = local, other = pinned && compute(pinned.settings);
    const overlaid = pinned && settings.view === "values" && pinned.settings.view === "values";
    const most = Math.max(1e-9, ...[n, ...(other ? [other] : [])].flatMap((m) => [...m.g, ...m.shifted, ...m.left, ...m.result]).map(Math.abs));
    const pictures = { values: drawValues, axes: drawAxes, gradient: drawGradient };
    const draw = (m) => pictures[m.settings.view](m, width, { pinned: overlaid && other, most, set });
    const now = draw(n), parts = [now.node];
    let { height } = now;
    if (pinned && !overlaid) { // below, under its name
      const below = draw(other);
      parts.push(label(4, height + 20, `Pinned: ${pinned.label}`, { "font-weight": 600 }));
      parts.push(svg("g", { transform: `translate(0 ${height + 28})`, opacity: 0.75 }, below.node));
      height += 28 + below.height;
    }
    const say = sentence(settings, n) + (pinned ? ` Pinned: ${sentence(pinned.settings, other)}` : "");
    return {
      picture: svg("svg", { width, height, role: "img", "aria-label": `${now.what} ${say}` }, parts), say, drag: now.drag,
      hide: unused[settings.view](settings), most: { image: settings.batch },
      table: tableFor(settings, n), detail: explain(settings, n, set, overlaid), code: code(settings, n),
    };
  }

  // Text stays legible where lines cross it. Beside a line there is room for it if the page is wide, else above.
  const halo = { stroke: "var(--rb-paper)", "stroke-width": 4, "stroke-linejoin": "round", "paint-order": "stroke" };
  const label = (x, y, text, attributes = {}) => svg("text", { x, y, "font-size": 11, ...halo, ...attributes }, text);
  const middle = { "text-anchor": "middle" };
  const heading = (x, y, lines) => lines.map((text, i) => label(x, y + 15 * i, text, { "font-size": i ? 12 : 13, "font-weight": i ? 400 : 600 }));
  const line = (x1, y1, x2, y2, attributes = {}) => svg("line", { x1, y1, x2, y2, stroke: "currentColor", ...attributes });
  const mark = (x, y, movable, attributes = {}) => (movable
    ? svg("path", { d: `M${x} ${y - 7}l7 7l-7 7l-7 -7z`, fill: "var(--rb-orange)", stroke: "#111", ...attributes })
    : svg("circle", { cx: x, cy: y, r: 4.5, fill: "var(--rb-sky)", stroke: "#111", "stroke-width": 0.8, ...attributes }));

  function drawValues(n, width, { pinned }) {
    const wide = width >= 560, left = wide ? 205 : 10, right = width - 12;
    const axis = (i) => (wide ? 32 + 74 * i : 64 + 98 * i), bottom = axis(3) + 24;
    // In evaluation, reach as far as the movable value can take it: a scale that changed under the pointer would run away.
    const ends = [n, ...(pinned ? [pinned] : [])].filter((m) => !m.training).flatMap(({ mean: mu, s, settings: { gamma, beta } }) =>
      [-10, 10].flatMap((v) => [v - mu, (v - mu) / s, (gamma * (v - mu)) / s + beta]));
    const low = Math.min(-14, ...ends), high = Math.max(11, ...ends), at = (v) => left + ((v - low) / (high - low)) * (right - left);
    const node = svg("g"), every = [5, 10, 20, 50, 100, 500].find((step) => (high - low) / step <= 8) ?? 2000;
    for (let t = Math.ceil(low / every) * every; t <= high; t += every) {
      node.append(line(at(t), axis(0) - 14, at(t), bottom, { opacity: t ? 0.15 : 0.5 }), label(at(t), bottom + 13, at(t) < 14 ? "" : signed(`${t}`), middle));
    }
    const draw = (m, strand, dot) => [
      ...m.stages.slice(1).flatMap((row, i) => row.map((v, k) => line(at(m.stages[i][k]), axis(i), at(v), axis(i + 1),
        k === row.length - 1 ? { stroke: "var(--rb-orange)", "stroke-width": 2, ...strand } : { opacity: 0.4, ...strand }))),
      ...m.stages.flatMap((row, i) => row.map((v, k) => mark(at(v), axis(i), k === row.length - 1, dot))),
    ];
    node.append(...n.stages.map((_, i) => line(left, axis(i), right, axis(i))));
    const hollow = { fill: "none", stroke: "currentColor", "stroke-dasharray": "2 2", "stroke-width": 1.4 };
    if (pinned) node.append(...draw(pinned, { "stroke-dasharray": "2 3", opacity: 0.4 }, hollow));
    node.append(...draw(n));
    const { gamma, beta, outlier } = n.settings, minus = `x ${plus(-n.mean)}`, formulas = [
      ["x", `${n.training ? "" : "running: "}μ = ${number(n.mean)}, σ² = ${number(n.variance)}`], ["x − μ", `= ${minus}`],
      ["x̂ = (x − μ) / √(σ² + ε)", `= (${minus}) / ${number(n.s)}`], ["y = γ x̂ + β", `= ${given(gamma)} · x̂ ${plus(beta, given)}`]];
    n.stages.forEach((row, i) => {
      const mu = mean(row), d = Math.sqrt(variance(row)), y = axis(i) + 14, bar = { stroke: "var(--rb-green)", "stroke-width": 2.5 };
      const tick = (v, size) => line(at(v), y - size, at(v), y + size, bar);
      node.append(line(at(mu - d), y, at(mu + d), y, bar), tick(mu - d, 4), tick(mu, 7), tick(mu + d, 4));
      const spread = `mean ${number(mu)} ± ${number(d)}`, place = Math.min(right - 16, Math.max(left + 16, at(row.at(-1))));
      const [title, filled] = formulas[i], lines = wide ? [title, filled, spread] : i ? [title, `${filled}; ${spread}`] : [`x: ${filled}`, spread];
      node.append(...heading(4, axis(i) - (wide ? 8 : 50), lines),
        label(place, axis(i) - 12, i ? number(row.at(-1)) : one(row.at(-1)), { ...middle, "font-weight": 600 }));
    });
    const grip = at(outlier), near = (x, y) => Math.abs(x - grip) < 22 && Math.abs(y - axis(0)) < 24;
    node.append(svg("rect", { x: grip - 22, y: axis(0) - 24, width: 44, height: 48, fill: "transparent", style: "cursor: ew-resize" }));
    const value = (x) => Math.min(10, Math.max(-10, low + ((x - left) / (right - left)) * (high - low)));
    const drag = (x, y, moving) => (moving || near(x, y) ? { outlier: Math.round(10 * value(x)) / 10 } : null);
    return { node, drag, height: bottom + 18, what: "Four number lines, from the input to the output; the movable value is a diamond." };
  }

  function drawGradient(n, width, { most }) {
    const { batch } = n.settings, wide = width >= 560, left = wide ? 205 : 10, node = svg("g");
    const slot = Math.min(72, (width - left - 8) / batch);
    const panels = [[n.g, "sky", "g", "as it arrives"], [n.shifted, "green", "less its mean", `= g ${plus(-mean(n.g))}`],
      [n.left, "purple", "less its part along x̂", `= … ${plus(-n.along)} · x̂`], [n.result, "orange", "gradient of x", `= γ/s · …, γ/s = ${number(n.settings.gamma / n.s)}`]];
    if (!n.training) panels.splice(1, 3, [n.result, "orange", "gradient of x", "= γ/s · g"]);
    let zero = 0;
    panels.forEach(([bars, colour, title, ...lines], p) => {
      zero = wide ? 52 + 104 * p : 84 + 144 * p;
      node.append(...heading(4, zero - (wide ? 12 : 70), wide ? [title, ...lines] : [title, lines.join("")]), line(left, zero, left + slot * batch, zero));
      bars.forEach((v, k) => {
        const tall = (Math.abs(v) / most) * 34, x = left + slot * (k + 0.5), down = v < -1e-12;
        const text = Math.abs(v) >= 1e-12 && Math.abs(v) < 0.005 ? "≈ 0" : number(v);
        const bar = { x: x - slot * 0.3, y: down ? zero : zero - tall, width: slot * 0.6, height: tall };
        node.append(svg("rect", { ...bar, fill: `var(--rb-${colour})`, stroke: "currentColor" }),
          label(x, down ? zero + tall + 12 : zero - tall - 4, text, { ...middle, "font-size": slot < 40 ? 10 : 11 }));
      });
    });
    n.g.forEach((_, k) => node.append(label(left + slot * (k + 0.5), zero + 66, nameOf(k, batch), { ...middle, "font-size": 12 })));
    return { node, height: zero + 74, what: "Bars for each value, in rows: the gradient that arrives, what is left of it, the gradient of x." };
  }

  function drawAxes({ settings }, width, { set }) {
    const { batch, groups } = settings, at = marked(settings), columns = width >= 560 ? 4 : 2, room = (width - 4) / columns, node = svg("g");
    const unit = Math.min(26, Math.floor((room - 24) / channels)), map = unit - 4, high = 54 + batch * unit;
    const grid = [1, 2].map((k) => `M${(k * map) / side} 0v${map}M0 ${(k * map) / side}h${map}`).join("");
    const frame = { fill: "none", stroke: "currentColor", rx: 3, "pointer-events": "none" };
    Object.keys(layers).forEach((layer, n) => {
      const x0 = 12 + (n % columns) * room, y0 = 10 + Math.floor(n / columns) * (high + 8);
      const left = (j) => x0 + (j - 1) * unit, top = (i) => y0 + 38 + (i - 1) * unit;
      if (layer === settings.layer) {
        node.append(svg("rect", { ...frame, x: x0 - 10, y: y0 - 8, width: channels * unit + 16, height: high - 2, "stroke-width": 2.5 }));
      }
      const count = means(layer, settings), counted = columns === 2 ? `${count} ×` : `${plural(count, "mean")} of`;
      node.append(...heading(x0, y0 + 10, [layers[layer], `${counted} ${perMean(layer, settings)} values`]));
      for (let i = 1; i <= batch; i++) for (let j = 1; j <= channels; j++) {
        const same = share[layer](i, j, at, groups), names = { "data-map": `${layer} ${i} ${j}`, "data-same": String(same) };
        const fill = { fill: same ? "var(--rb-green)" : "var(--rb-muted)", "fill-opacity": same ? 1 : 0.12 };
        const choose = { style: "cursor: pointer", onclick: () => set({ layer, image: i, channel: j }), transform: `translate(${left(j)} ${top(i)})` };
        node.append(svg("g", { ...names, ...choose }, svg("rect", { width: map, height: map, ...fill }), svg("path", { d: grid, stroke: "var(--rb-paper)" })));
      }
      // A frame around every set of values that has one mean.
      const [tall, wide] = { batch: [batch, 1], layer: [1, channels], instance: [1, 1], group: [1, channels / groups] }[layer];
      for (let i = 1; i <= batch; i += tall) for (let j = 1; j <= channels; j += wide) {
        const box = { x: left(j) - 1, y: top(i) - 1, width: wide * unit - 2, height: tall * unit - 2 };
        node.append(svg("rect", { ...frame, ...box, "stroke-width": share[layer](i, j, at, groups) ? 2 : 0.8 }));
      }
      node.append(mark(left(at.channel) + map / 2, top(at.image) + map / 2, true, { "pointer-events": "none" }));
    });
    return { node, height: (4 / columns) * (high + 8) + 4, what: "Four grids of maps, images by channels; filled is what shares its mean with the diamond." };
  }

  const numbered = (title, numbers, shown = numbers.map((v) => number(v, 4))) =>
    Object.assign([].concat(title, shown), { attributes: { "data-numbers": JSON.stringify(numbers) } });
  function tableFor(settings, n) {
    const { view, batch } = settings, averaged = { batch: "N, H, W", layer: "C, H, W", instance: "H, W", group: "H, W, and C of a group" };
    if (view === "axes") {
      const counts = (layer) => [perMean(layer, settings), means(layer, settings)];
      const kept = (layer) => (layer === "batch" ? ["yes", "in training"] : ["no", "no"]);
      return { caption: `A batch of ${batch}×${channels}×${side}×${side}`, text: 2,
        head: ["layer", "averaged over", "values for each mean", "means", "running statistics", "depends on other images"],
        rows: Object.keys(layers).map((layer) => numbered([layers[layer], averaged[layer]], counts(layer), [...counts(layer), ...kept(layer)])) };
    }
    const gradients = view === "gradient", columns = gradients ? [n.hat, n.g, n.shifted, n.result] : n.stages;
    const foot = (title, f) => numbered(title, columns.map(f));
    return { caption: `${modeOf(settings)}, γ = ${given(settings.gamma)}, β = ${given(settings.beta)}. Rounding below 10⁻¹² is shown as 0.`,
      head: ["value", ...(gradients ? ["x̂", "g", "g − mean(g)", "gradient of x"] : ["x", "x − μ", "x̂", "y"])],
      rows: [...n.hat.map((_, k) => numbered(nameOf(k, batch), columns.map((list) => list[k]))),
        ...(gradients ? [foot("sum", total), foot("sum of products with x̂", (list) => dot(list, n.hat))] : [foot("mean", mean), foot("variance", variance)]),
        numbered("used: μ, σ², √(σ² + ε)", [n.mean, n.variance, n.s])] };
  }

  // The numbers filled into the formulas.
  const hat = () => mathml("mover", { accent: "true" }, mathml("mi", {}, "x"), mathml("mo", {}, "^"));
  const fine = (v) => number(v, 4), bracketed = (v) => (v < -1e-12 ? `(${fine(v)})` : fine(v)), p = (...parts) => html("p", {}, ...parts);
  function explain(settings, n, set, overlaid) {
    const { batch, outlier, momentum, steps, gamma, beta, view } = settings, last = (list) => fine(list.at(-1));
    if (view === "axes") {
      return p(`One row for each image, one column for each channel, ${side}×${side} positions in each map; each framed set of values has one mean. `,
        "Filled: the set of the marked value ◆. Move it with the controls, or press on a map.");
    }
    if (view === "gradient") {
      const taken = n.training ? `${last(n.g)} ${plus(-mean(n.g), fine)} ${plus(-n.hat.at(-1), fine)} · ${bracketed(n.along)}` : last(n.g);
      return [p("The last value's gradient:"), formula(fraction(given(gamma), fine(n.s)), `( ${taken} ) = ${last(n.result)}`),
        p(`The layer's own parameters: ∂L/∂β = Σ g = ${fine(total(n.g))} and ∂L/∂γ = Σ g x̂ = ${fine(dot(n.g, n.hat))}.`)];
    }
    const legend = p("◆ the movable value: drag it on the first line. ● the others. Green: mean ± standard deviation of what stands on that line.",
      overlaid ? " Hollow: what is pinned." : "");
    if (n.refused) return legend;
    const root = mathml("msqrt", {}, row(`${fine(n.variance)} + 10⁻⁵`));
    const way = [formula(hat(), "=", fraction(`${one(outlier)} ${plus(-n.mean, fine)}`, root), `= ${last(n.hat)}`),
      formula(`y = ${given(gamma)} · ${bracketed(n.hat.at(-1))} ${plus(beta, given)} = ${last(n.stages[3])}`)];
    if (n.training) {
      const average = (sum, result) => [fraction(fine(sum), `${batch}`), `= ${fine(result)}`];
      return [legend, p("Mean and variance, both divided by N, and the movable value on its way:"),
        formula("μ =", ...average(total(n.stages[0]), n.mean), mathml("mspace", { width: "2em" }),
          power("σ", "2"), "=", ...average(dot(n.stages[1], n.stages[1]), n.variance)), ...way];
    }
    const update = (name, key) => formula(mathml("msub", {}, row(name), mathml("mtext", {}, "run")),
      `= ${given(1 - momentum)} · ${fine(n.before[key])} + ${given(momentum)} · ${fine(seen[key])} = ${fine(n[key])}`);
    const onclick = () => set({ steps: Math.min(60, steps + 1) });
    const train = html("button", { type: "button", "data-key": "train", "data-do": "train", onclick }, "Train one step");
    return [legend, p("The running statistics begin at 0 and 1. Each step moves them toward a batch of all eight values as they stood at first: ",
      `mean ${fine(seen.mean)}, unbiased variance ${fine(seen.variance)}. `, train),
    ...(steps ? [update("μ", "mean"), update("v", "variance")] : []), ...way];
  }

  function code(settings, n) {
    const { view, batch, gamma, beta, momentum, steps, groups, pattern } = settings, at = marked(settings);
    const tensor = (list) => `torch.tensor([${list.join(", ")}], dtype=torch.float64)[:, None]`;
    const print = (name, value) => `print("${name}:", ${value}.flatten().tolist())`;
    if (view === "axes") {
      return ["import torch", "import torch.nn.functional as F", "", `x = torch.randn(${batch}, ${channels}, ${side}, ${side}, requires_grad=True)`,
        "outputs = {", '    "batch": F.batch_norm(x, None, None, training=True),', '    "layer": F.layer_norm(x, x.shape[1:]),',
        '    "instance": F.instance_norm(x),', `    "group": F.group_norm(x, ${groups}),`, "}",
        "for name, y in outputs.items():  # on which inputs does one output depend?",
        `    (used,) = torch.autograd.grad(y[${at.image - 1}, ${at.channel - 1}, 1, 1], x)`, "    values = used.count_nonzero().item()",
        '    print(name, "norm:", values, "values for each mean,", x.numel() // values, "means")', ""].join("\n");
    }
    const trained = n.training ? "mean, var = x.mean(), x.var(correction=0)"
      : `batch = ${tensor(values)}\nfor step in range(${steps}):\n    bn(batch)\nbn.eval()\nmean, var = bn.running_mean, bn.running_var`;
    const guarded = (...lines) =>
      (n.refused ? ["try:", ...lines.map((text) => `    ${text}`), "except ValueError as error:", "    print(error)"] : lines);
    const start = ["import torch", "from torch import nn", "", `x = ${tensor(n.stages[0])}`,
      `bn = nn.BatchNorm1d(1, momentum=${momentum}, dtype=torch.float64)`,
      `nn.init.constant_(bn.weight, ${gamma})`, `nn.init.constant_(bn.bias, ${beta})`, trained, "x_hat = (x - mean) / torch.sqrt(var + bn.eps)"];
    const g = { equal: "torch.ones_like(x)", one: "torch.zeros_like(x)\ng[-1] = 1", xhat: "x_hat", alternating: tensor(n.g) }[pattern];
    const rest = view === "gradient"
      ? [`g = ${g}`, "x.requires_grad_()", ...guarded("bn(x).backward(g)", print("gradient of x", "x.grad"),
        'print("its sum:", x.grad.sum().item())', 'print("its product with x_hat:", (x.grad * x_hat).sum().item())')]
      : ['print("mean and variance:", mean.item(), var.item())', print("centred", "(x - mean)"), print("normalised", "x_hat"),
        ...guarded(print("output", "bn(x)")),
        ...(n.refused ? ['print("it would be:", (bn.weight * x_hat + bn.bias).item())'] : [])];
    return [...start, ...rest, ""].join("\n");
  }

  return { show, describe };
}
