// The gradient explorer. Every number is a measurement that Python made: recorded, or recomputed by the kernel.

function explore(data) {
  const { record, predicted, own } = data;
  const codes = decode(record);
  const NAMES = { plain: "plain", residual: "residual", own: own?.label ?? "your model" };
  const DASHES = { plain: "7 4", residual: null, own: "9 3 2 3" };
  const colour = (kind) => `var(--rb-${kind === "own" ? "green" : kind})`;

  // The record is one string of 16-bit codes; its layout and the code are described in gradient_grid.py.
  function decode({ axes, quantities, statistics, data: base64 }) {
    const raw = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)), view = new DataView(raw.buffer);
    const value = (code) => (code === 0 ? 0 : code === 65535 ? NaN : 10 ** (code / 1000 - 50));
    const found = new Map();
    let at = 0;
    const read = (count) => Array.from({ length: count }, () => value(view.getUint16(2 * at++, true)));
    const walk = (chosen) => {
      if (chosen.length < axes.length) return axes[chosen.length].forEach((v) => walk([...chosen, v]));
      const blocks = (chosen[0] - 2) / 2;
      found.set(chosen.join(), Object.fromEntries(quantities.map((q) => [q, Object.fromEntries(statistics.map((s) => [s, read(blocks)]))])));
    };
    walk([]);
    return found;
  }

  const kindOf = (name, { zero }) => (name === "residual" && zero ? "zero-init" : name);
  const keyOf = (s, name) => [s.depth, s.norm, s.init, s.order, kindOf(name, s)].join();
  function curvesOf(settings, answer) {
    if (answer) return answer.curves;
    const curves = { plain: codes.get(keyOf(settings, "plain")), residual: codes.get(keyOf(settings, "residual")) };
    return own ? { ...curves, own: own.curve } : curves;
  }
  const factorOf = (s, name) => predicted[[s.norm, s.init, s.order, kindOf(name, s)].join()] ?? null;
  const source = (answer) => (answer ? answer.source : record.source);
  const digits = (answer) => (answer ? 3 : 2); // the record keeps two and a half
  const text = (value, answer) => (value === null ? "not finite" : value === 0 ? "0" : short(value, digits(answer)));
  const growth = ({ gradient: { median } }) => (median[0] === null || !median.at(-1) ? null : median[0] / median.at(-1));

  const describe = ({ depth, norm, init, order, zero }) =>
    `depth ${depth}, ${norm === "none" ? "no normalisation" : "batch norm"}, ${{ default: "PyTorch default", xavier: "Xavier", he: "He" }[init]}` +
    (order === "original" ? "" : ", pre-activation") + (zero ? ", zero-init" : "");

  const wrapped = (words, most) => words.split(" ").reduce((lines, word) =>
    (lines.at(-1) + word).length < most ? [...lines.slice(0, -1), `${lines.at(-1)}${lines.at(-1) && " "}${word}`] : [...lines, word], [""]);

  function show({ settings, local, width, answer, set }) {
    const curves = curvesOf(settings, answer), count = curves.plain.gradient.median.length;
    const block = Math.min(settings.block, count), pinned = local.pinned && curvesOf(local.pinned.settings, local.pinned.answer);
    const wide = width >= 620, size = wide ? (width - 16) / 2 : width, high = wide ? 290 : 240;
    const note = wrapped(source(answer), width / 6.4);
    const blocks = Math.max(count, pinned?.plain.gradient.median.length ?? 0);
    const legendHeight = wide ? 24 : 42, picture = svg("svg", { width, height: legendHeight + (wide ? high : 2 * high) + 4 + 14 * note.length, role: "img" });
    const used = Object.keys(curves);
    drawLegend(picture, used, settings, pinned, width, !wide);
    const charts = ["gradient", "activation"].map((quantity, i) => {
      const frame = svg("g", { transform: wide ? `translate(${i * (size + 16)} ${legendHeight})` : `translate(0 ${legendHeight + i * high})` });
      picture.append(frame);
      return drawChart(frame, quantity, { curves, pinned, settings, block, blocks, width: size, height: high, answer });
    });
    note.forEach((line, i) =>
      picture.append(svg("text", { x: 0, y: legendHeight + (wide ? high : 2 * high) + 12 + 14 * i, "font-size": 11, fill: "var(--rb-muted)" }, line)));
    const said = sentence(settings, curves, block, answer);
    picture.setAttribute("aria-label", `Two charts over the blocks on logarithmic axes: the gradient's length, and the activations' size. ${said}`);
    return {
      picture, say: said + (pinned ? ` Pinned, ${local.pinned.label}: ${ends(pinned, local.pinned.answer)}.` : ""), most: { block: count },
      table: tableFor(curves, settings, answer), code: code(settings, answer), detail: html("p", {}, prediction(settings, curves)),
      drag: (x) => {
        const inside = charts[0].position(wide ? x % (size + 16) : x);
        return inside < 0.2 || inside > count + 0.8 ? null : { block: Math.max(1, Math.min(count, Math.round(inside))) };
      },
    };
  }

  const ends = (curves, answer) => Object.entries(curves)
    .map(([name, curve]) => `${NAMES[name]} ${text(growth(curve), answer)}`).join(", ");
  function sentence(settings, curves, block, answer) {
    const at = Object.entries(curves).filter(([name]) => name !== "own")
      .map(([name, { gradient: g }]) => `${NAMES[name]} ${text(g.median[block - 1], answer)} (${text(g.least[block - 1], answer)} to ${text(g.greatest[block - 1], answer)})`);
    return `${answer?.title ?? describe(settings).replace("d", "D")}. From the last block to the first, |dL/dx| is multiplied by: ${ends(curves, answer)}. At block ${block}: ${at.join(", ")}.`;
  }

  function prediction(settings, curves) {
    const parts = ["plain", "residual"].map((name) => {
      const factor = factorOf(settings, name);
      return factor === null ? `for the ${name} network no constant factor is known` : `${name} × ${short(factor)} per block toward the input`;
    });
    return `Predicted (thin dotted lines, from the last block on): ${parts.join("; ")}. The predictions know nothing of the maps' borders.`;
  }

  function drawLegend(picture, used, settings, pinned, width, broken) {
    let x = 0, y = 12;
    const entry = (attributes, label) => {
      if (broken && x + 34 + 6.4 * label.length > width) [x, y] = [0, y + 17];
      picture.append(svg("line", { x1: x, x2: x + 26, y1: y - 4, y2: y - 4, ...attributes }), svg("text", { x: x + 31, y }, label));
      x += 48 + 6.4 * label.length;
    };
    for (const name of used) entry({ stroke: colour(name), "stroke-width": 2.4, "stroke-dasharray": DASHES[name] }, name === "residual" && settings.zero ? "residual, zero-init" : NAMES[name]);
    entry({ stroke: "currentColor", "stroke-width": 9, opacity: 0.2 }, "least to greatest");
    entry({ stroke: "currentColor", "stroke-width": 1.6, "stroke-dasharray": "1.5 3.5" }, "predicted");
    if (pinned) entry({ stroke: "currentColor", "stroke-width": 1 }, "pinned (thin)");
  }

  function drawChart(frame, quantity, { curves, pinned, settings, block, blocks, width, height, answer }) {
    const left = 44, right = width - 6, top = 22, bottom = height - 34;
    const all = [curves, pinned ?? {}].flatMap((set) => Object.values(set)).flatMap((curve) => Object.values(curve[quantity]).flat());
    const positive = all.filter((v) => v > 0 && Number.isFinite(v)), logs = positive.map(Math.log10);
    let low = Math.floor(Math.min(...logs)), high = Math.ceil(Math.max(...logs));
    if (!positive.length) [low, high] = [-1, 1];
    if (high - low < 2) high = low + 2;
    const { at, ticks } = logAxis(low, high, bottom, top);
    const x = (i) => left + 8 + ((right - left - 16) * i) / Math.max(1, blocks - 1);
    const title = quantity === "gradient" ? "|dL/dx| at each block's output" : "rms of each block's output";
    frame.append(svg("text", { x: left, y: 12, "font-weight": 600 }, title));
    for (const tick of ticks) {
      frame.append(svg("line", { x1: left, x2: right, y1: tick.at, y2: tick.at, stroke: "currentColor", opacity: 0.15 }),
        svg("text", { x: left - 5, y: tick.at + 4, "text-anchor": "end", "font-size": 11 }, tick.label));
    }
    const step = [1, 2, 5, 10, 20, 50].find((s) => blocks / s <= 8);
    for (let number = step === 1 ? 1 : step; number <= blocks; number += step) {
      frame.append(svg("text", { x: x(number - 1), y: bottom + 14, "text-anchor": "middle", "font-size": 11 }, number));
    }
    frame.append(svg("text", { x: (left + right) / 2, y: bottom + 29, "text-anchor": "middle", "font-size": 11 }, "block (1 is next to the input)"),
      svg("line", { x1: x(block - 1), x2: x(block - 1), y1: top, y2: bottom, stroke: "currentColor", "stroke-width": 1, opacity: 0.6 }));
    const place = (v) => (v > 0 ? at(Math.max(v, 10 ** low)) : bottom);
    const drawSet = (set, thin) => Object.entries(set).forEach(([name, curve]) => {
      const { median, least, greatest } = curve[quantity], spread = (i) => x(name === "own" ? (i * (blocks - 1)) / Math.max(1, median.length - 1) : i);
      const line = (values) => values.map((v, i) => [spread(i), place(v), v]).filter(([, , v]) => v !== null && !Number.isNaN(v));
      const style = { fill: "none", stroke: colour(name), "stroke-dasharray": DASHES[name], "stroke-width": thin ? 1 : 2.4 };
      if (!thin) frame.append(svg("polygon", { points: points([...line(least), ...line(greatest).reverse()]), fill: colour(name), opacity: 0.18 }));
      frame.append(svg("polyline", { ...style, points: points(line(median)) }));
      if (!thin && name !== "own" && median[block - 1] !== null) frame.append(svg("circle", { cx: spread(block - 1), cy: place(median[block - 1]), r: 4, fill: colour(name) }));
      if (!thin && median.some((v) => v === 0)) frame.append(svg("text", { x: spread(median.indexOf(0)) + 2, y: bottom - 5, "font-size": 11 }, `exactly 0 (${NAMES[name]})`));
    });
    if (pinned) drawSet(pinned, true);
    drawSet(curves, false);
    if (quantity === "gradient") for (const name of ["plain", "residual"]) {
      const factor = factorOf(settings, name), { median } = curves[name].gradient, last = median.at(-1);
      if (factor === null || !(last > 0)) continue;
      const inside = median.map((_, i) => [x(i), Math.log10(last) + (median.length - 1 - i) * Math.log10(factor)]).filter(([, log]) => log >= low && log <= high);
      frame.append(svg("polyline", { points: points(inside.map(([px, log]) => [px, at(10 ** log)])), fill: "none", stroke: colour(name), "stroke-width": 1.6, "stroke-dasharray": "1.5 3.5" }));
    }
    return { position: (px) => 1 + ((px - left - 8) * Math.max(1, blocks - 1)) / (right - left - 16) };
  }

  function tableFor(curves, settings, answer) {
    const columns = ["gradient", "activation"].flatMap((quantity) => ["plain", "residual"].map((name) => [quantity, name]));
    const rows = curves.plain.gradient.median.map((_, i) => {
      const values = [String(i + 1), ...columns.map(([quantity, name]) => {
        const { median, least, greatest } = curves[name][quantity];
        return `${text(median[i], answer)} (${text(least[i], answer)} – ${text(greatest[i], answer)})`;
      })];
      values.attributes = { "data-numbers": JSON.stringify(columns.map(([quantity, name]) => ["median", "least", "greatest"].map((s) => curves[name][quantity][s][i]))) };
      return values;
    });
    return { caption: `${answer?.title ?? describe(settings)}: median (least – greatest) of the seeds. ${source(answer)}`, rows,
      head: ["block", "|dL/dx| plain", "|dL/dx| residual", "rms plain", "rms residual"] };
  }

  function code({ depth, norm, init, order, zero }, answer) {
    const { width = 1, batch = 32 } = answer?.settings ?? {};
    const options = [width === 1 ? null : `widths=(${16 * width}, ${32 * width}, ${64 * width})`, norm === "none" ? "norm=nn.Identity" : null, order === "original" ? null : `order="${order}"`].filter(Boolean);
    return `# One such measurement, with noise for images: expect the same powers of ten, not the same digits.
import torch
from torch import nn
from resbook import cifar_resnet, default_device, initialize, trace_gradients

torch.manual_seed(0)
images, labels = torch.randn(${batch}, 3, 32, 32), torch.randint(10, (${batch},))
for kind in ({"residual": False}, {${zero ? '"zero_init": True' : ""}}):
    torch.manual_seed(0)
    model = cifar_resnet(${[answer?.settings.depth ?? depth, ...options, "**kind"].join(", ")})
    initialize(model, "${init}").to(default_device())
    print(trace_gradients(model, images, labels))
`;
  }

  return { show, describe };
}
