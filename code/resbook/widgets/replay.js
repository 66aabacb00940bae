// The degradation replay. Every number is a measurement that Python made: recorded, or computed by the kernel.

function explore({ records, shallow, guessing, near, ratios }) {
  const ERRORS = ["training", "test"];
  const KINDS = { plain: { colour: "var(--rb-plain)", dash: "6 3.5" }, ResNet: { colour: "var(--rb-residual)", dash: null } };

  const titles = ({ ratio }) => ({ training: "Training error in per cent", test: "Test error in per cent", [ratio]: `${ratios[ratio]}, first / last block` });
  const digit = (quantity, value) => (ERRORS.includes(quantity) ? (value / 10).toFixed(1) : short(value));
  function text(quantity, entry) { // median (least to greatest), or the one value there is
    if (!entry) return "–";
    const [median, ...ends] = entry.map((value) => digit(quantity, value));
    return ends.length ? `${median} (${ends.join(" to ")})` : median;
  }

  // Where a record has one depth or rate only, the control is hidden and means that one.
  function shown(settings) {
    const record = records[settings.data], pick = (value, values) => (values.includes(value) ? value : values.at(-1));
    return { record, depth: pick(settings.depth, record.depths), rate: pick(settings.rate, record.rates), epoch: Math.min(settings.epoch, record.epochs) };
  }
  const deepNames = (depth) => Object.keys(KINDS).map((kind) => `${kind}-${depth}`);
  function linesOf(settings, answer) {
    const { record, depth, rate } = shown(settings);
    const recorded = Object.keys(KINDS).flatMap((kind) => [shallow, depth].map((d) => ({ kind, deep: d !== shallow, name: `${kind}-${d}`, curve: record.curves[`${kind}-${d} ${rate}`] })));
    const live = Object.entries(answer?.curves ?? {}).map(([name, curve]) => ({ kind: name.split("-")[0], live: true, name: `${name} from seed ${answer.settings.seed}`, curve }));
    return [...recorded.filter(({ curve }) => curve), ...live];
  }

  const describe = (settings) => { const { depth, rate } = shown(settings); return `${depth} layers at rate ${rate}`; };
  const statistics = ({ seeds }) => (seeds > 1 ? `median (least to greatest) of ${seeds} seeds` : "one seed");
  const moment = (epoch, epochs) => (epoch ? `after epoch ${epoch} of ${epochs}` : "before training");
  const wrapped = (words, most) => words.split(" ").reduce((lines, word) =>
    (lines.at(-1) + word).length < most ? [...lines.slice(0, -1), `${lines.at(-1)}${lines.at(-1) && " "}${word}`] : [...lines, word], [""]);

  function show({ settings, local, width, answer }) {
    const { record, epoch } = shown(settings), lines = linesOf(settings, answer);
    const pinned = local.pinned ? linesOf(local.pinned.settings, local.pinned.answer) : [];
    const wide = width >= 620, gap = 12, size = wide ? (width - 2 * gap) / 3 : width, high = wide ? 250 : 210;
    const legend = legendOf(lines, pinned, width), note = wrapped([record.source, answer?.source ?? ""].join(" ").trim(), width / 6);
    const below = legend.height + (wide ? high : 3 * high);
    const picture = svg("svg", { width, height: below + 4 + 14 * note.length, role: "img" }, legend.marks);
    const panels = Object.entries(titles(settings)).map(([quantity, title], i) => {
      const frame = svg("g", { transform: wide ? `translate(${i * (size + gap)} ${legend.height})` : `translate(0 ${legend.height + i * high})` });
      picture.append(frame);
      return drawPanel(frame, quantity, { title, lines, pinned, epoch, epochs: record.epochs, width: size, height: high });
    });
    note.forEach((line, i) => picture.append(svg("text", { x: 0, y: below + 14 * (i + 1) - 2, "font-size": 11, fill: "var(--rb-muted)" }, line)));
    const said = sentence(settings, lines);
    picture.setAttribute("aria-label", `Three charts over the epochs: training error, test error, ratio of gradients. ${said}`);
    return {
      picture, say: said + (pinned.length ? ` Pinned, ${local.pinned.label}: ${compared(pinned, epoch)}` : ""), most: { epoch: record.epochs },
      table: tableFor(settings, lines), code: code(settings, answer),
      hide: [["data", Object.keys(records)], ["depth", record.depths], ["rate", record.rates]].filter(([, values]) => values.length < 2).map(([name]) => name),
      drag: (x, y, moving) => {
        const at = panels[0].position(wide ? x % (size + gap) : x);
        return !moving && (at < -0.5 || at > record.epochs + 0.5) ? null : { epoch: Math.max(0, Math.min(record.epochs, Math.round(at))) };
      },
    };
  }

  // What was just computed may not have come as far as what is recorded: then its last epoch is said.
  function listed(quantity, lines, epoch) {
    return lines.map(({ name, live, curve }) => {
      const at = live ? Math.min(epoch, curve[quantity].length - 1) : epoch, entry = curve[quantity][at];
      return `${name}${at === epoch ? "" : ` in epoch ${at}:`} ${text(quantity, entry)}`;
    }).join(", ");
  }
  const compared = (lines, epoch) => `training error ${epoch ? listed("training", lines, epoch) : "none yet"}.`;
  function sentence(settings, lines) {
    const { record, depth, epoch } = shown(settings);
    const parts = [`${describe(settings)}, ${moment(epoch, record.epochs)}: ${statistics(record)}`];
    for (const [quantity, title] of Object.entries(titles(settings))) {
      if (epoch || !ERRORS.includes(quantity)) parts.push(`${title}: ${listed(quantity, lines, epoch)}`);
    }
    const guess = ERRORS.flatMap((quantity) => lines.filter(({ live, curve }) => !live && curve[quantity][epoch] && Math.abs(curve[quantity][epoch][0] - guessing) <= near).map(({ name }) => `${name} in ${quantity}`));
    if (guess.length) parts.push(`Near guessing (${guessing / 10} %, at most ${near / 10} away): ${guess.join(", ")}`);
    for (const name of deepNames(depth)) if (!lines.some((line) => line.name === name)) parts.push(`There is no ${name} in the record`);
    return `${parts.join(". ")}.`;
  }

  const strokeOf = ({ kind, deep, live }) => ({ stroke: KINDS[kind].colour, "stroke-dasharray": live ? null : KINDS[kind].dash, "stroke-width": deep ? 2.8 : 1.3 });
  const ring = (kind, cx, cy) => svg("circle", { cx, cy, r: 3, fill: "var(--rb-paper)", stroke: KINDS[kind].colour, "stroke-width": 1.3 });
  function legendOf(lines, pinned, width) {
    const line = (attributes) => (x, y) => svg("line", { x1: x, x2: x + 28, y1: y - 4, y2: y - 4, ...attributes });
    const entries = lines.map((one) => [one.name, (x, y) => [line(strokeOf(one))(x, y), one.live ? ring(one.kind, x + 14, y - 4) : null]]);
    if (lines.some(({ curve }) => curve.dx[0]?.length > 1)) entries.push(["least to greatest", line({ stroke: "currentColor", "stroke-width": 9, opacity: 0.2 })]);
    if (pinned.length) entries.push(["pinned (dotted)", line({ stroke: "currentColor", "stroke-width": 1.6, "stroke-dasharray": "1.5 3" })]);
    let x = 0, y = 12;
    const marks = entries.flatMap(([label, mark]) => {
      const wide = 48 + 6.6 * label.length;
      if (x && x + wide - 14 > width) [x, y] = [0, y + 17];
      const found = [mark(x, y), svg("text", { x: x + 33, y }, label)].flat();
      x += wide;
      return found;
    });
    return { marks, height: y + 14 };
  }

  function drawPanel(frame, quantity, { title, lines, pinned, epoch, epochs, width, height }) {
    const left = 36, right = width - 6, top = 22, bottom = height - 34, errors = ERRORS.includes(quantity);
    const x = (e) => left + 5 + ((right - left - 10) * e) / epochs;
    const { at, ticks } = errors ? percentAxis(bottom, top) : ratioAxis([...lines, ...pinned].flatMap(({ curve }) => curve[quantity]), bottom, top);
    frame.append(svg("text", { x: 0, y: 12, "font-weight": 600 }, title));
    for (const tick of ticks) {
      frame.append(svg("line", { x1: left, x2: right, y1: tick.at, y2: tick.at, stroke: "currentColor", opacity: 0.15 }),
        svg("text", { x: left - 5, y: tick.at + 4, "text-anchor": "end", "font-size": 11 }, tick.label));
    }
    const step = [1, 2, 5, 10, 20, 50].find((s) => epochs / s <= 6) ?? 100;
    for (let e = 0; e <= epochs; e += step) frame.append(svg("text", { x: x(e), y: bottom + 14, "text-anchor": "middle", "font-size": 11 }, e));
    frame.append(svg("text", { x: (left + right) / 2, y: bottom + 29, "text-anchor": "middle", "font-size": 11 }, "epoch"),
      svg("line", { x1: x(epoch), x2: x(epoch), y1: top, y2: bottom, stroke: "currentColor", "stroke-width": 1, opacity: 0.6 }));
    if (errors) {
      frame.append(svg("line", { x1: left, x2: right, y1: at(guessing), y2: at(guessing), stroke: "currentColor", "stroke-dasharray": "1.5 3", opacity: 0.7 }),
        svg("text", { x: right, y: at(guessing) - 4, "text-anchor": "end", "font-size": 11, fill: "var(--rb-muted)" }, "guessing"));
    }
    const placed = (curve, which, wanted = () => true) => curve[quantity].map((entry, e) => [e, entry]).filter(([e, entry]) => entry && wanted(e))
      .map(([e, entry]) => [x(e), at(entry[Math.min(which, entry.length - 1)])]);
    for (const { kind, curve } of pinned) {
      frame.append(svg("polyline", { points: points(placed(curve, 0)), fill: "none", stroke: KINDS[kind].colour, "stroke-width": 1.6, "stroke-dasharray": "1.5 3" }));
    }
    for (const line of lines) { // strongly up to the epoch, faintly beyond
      for (const [wanted, strength] of [[(e) => e >= epoch, 0.3], [(e) => e <= epoch, 1]]) {
        if (line.live && strength < 1) continue; // what was just computed is few epochs, and no replay
        const reach = line.live ? () => true : wanted;
        if (!line.live) frame.append(svg("polygon", { points: points([...placed(line.curve, 1, reach), ...placed(line.curve, 2, reach).reverse()]), fill: KINDS[line.kind].colour, opacity: 0.18 * strength }));
        frame.append(svg("polyline", { ...strokeOf(line), points: points(placed(line.curve, 0, reach)), fill: "none", opacity: strength }));
      }
      if (line.live) frame.append(...placed(line.curve, 0).map(([px, py]) => ring(line.kind, px, py)));
      else frame.append(...placed(line.curve, 0, (e) => e === epoch).map(([cx, cy]) => svg("circle", { cx, cy, r: line.deep ? 4 : 2.5, fill: KINDS[line.kind].colour })));
    }
    return { position: (px) => ((px - left - 5) * epochs) / (right - left - 10) };
  }
  function percentAxis(start, end) {
    const at = (thousandths) => start + ((end - start) * thousandths) / 1000;
    return { at, ticks: [0, 20, 40, 60, 80, 100].map((percent) => ({ at: at(10 * percent), label: percent })) };
  }
  function ratioAxis(entries, start, end) {
    const logs = entries.filter(Boolean).flat().map(Math.log10), low = Math.floor(Math.min(...logs));
    return logAxis(low, Math.max(Math.ceil(Math.max(...logs)), low + 2), start, end);
  }

  function tableFor(settings, lines) {
    const { record } = shown(settings), columns = Object.keys(titles(settings)).flatMap((quantity) => lines.map(({ curve }) => [quantity, curve[quantity]]));
    const rows = Array.from({ length: record.epochs + 1 }, (_, e) => {
      const values = [String(e), ...columns.map(([quantity, entries]) => text(quantity, entries[e]))];
      values.attributes = { "data-numbers": JSON.stringify(columns.map(([, entries]) => entries[e] ?? null)) };
      return values;
    });
    const what = `errors in per cent, and the first block's ${ratios[settings.ratio]} over the last's; ${statistics(record)}`;
    return { caption: `${describe(settings)}: ${what}. ${record.source}`, rows,
      head: ["epoch", ...[...ERRORS, ratios[settings.ratio]].flatMap((head) => lines.map(({ name }) => `${head}, ${name}`))] };
  }

  function code(settings, answer) {
    const { record, depth, rate } = shown(settings), { seed = 0, epochs = record.epochs } = answer?.settings ?? {};
    const kind = record.curves[`plain-${depth} ${rate}`] ? "plain" : "residual";
    const run = `# One such run: ${kind === "plain" ? `plain-${depth}; without residual=False it is ResNet-${depth}` : `ResNet-${depth}`}.
import torch
from resbook import cifar_resnet, default_device, trace_gradients
from resbook.data import digits
from resbook.training import train

data = digits()
torch.manual_seed(${seed})
model = cifar_resnet(${depth}, in_channels=1${kind === "plain" ? ", residual=False" : ""}).to(default_device())
probe = data.train_images[:64], data.train_labels[:64]
print("before training:", trace_gradients(model, *probe))
print(train(model, data, epochs=${epochs}, lr=${rate}, batch_size=64, seed=${seed}))
print("afterwards:", trace_gradients(model.train(), *probe))

`;
    return `${settings.data === "digits" ? run : ""}# What is recorded of such runs, one for each seed.
from resbook.records import find_runs, load_record

record = load_record("${record.name}")
print(record["command"], record["device"], record["date"], sep="\\n")
for results in find_runs(record, depth=${depth}, kind="${kind}"${record.rates.length > 1 ? `, lr=${rate}` : ""}):
    print(results["train_accuracy"], results["test_accuracy"])
    print(results["gradients"])
`;
  }

  return { show, describe };
}
