// The block workshop. Python has traced and tried every combination; here it is only looked up, compared and drawn.

function explore(data) {
  const { axes, inputs, rows, texts, orders, blocks } = data;
  const BOX = 30, ARROW = 30, INK = "currentColor", SHORTCUT = "var(--rb-residual)";

  const sum = (layers, key) => layers.reduce((total, layer) => total + layer[key], 0);
  const shapeText = ({ channels, size }) => `${channels}×${size}×${size}`;

  function blockOf(settings) {
    const index = axes.reduce((at, [name, values]) => at * values.length + values.indexOf(settings[name]), 0);
    const [numbers, split, identity, gradient, call] = blocks[index];
    const layers = numbers.map((number) => {
      const [name, label, channels, size, parameters, macs, memory] = rows[number];
      return { name, label, channels, size, parameters, macs, memory };
    });
    const around = layers.filter(({ name }) => name.startsWith("downsample"));
    const [channels, size] = inputs[settings.block], residual = settings.shortcut !== "none";
    return { settings, call, layers, around, through: layers.filter((layer) => !around.includes(layer)), split, residual,
      input: { channels, size }, output: layers.at(-1), identity: texts[identity], gradient: texts[gradient],
      parameters: sum(layers, "parameters"), macs: sum(layers, "macs"), memory: sum(layers, "memory") };
  }

  const isIdentity = ({ shortcut, stride, channels }) => "AB".includes(shortcut) && stride === 1 && channels === "same";
  const shortcutOf = (settings) =>
    settings.shortcut === "none" ? "no shortcut" : isIdentity(settings) ? "identity shortcut" : `shortcut ${settings.shortcut}`;
  const kindOf = (settings) => `${settings.block === "BasicBlock" ? "basic block" : "bottleneck"}, ${shortcutOf(settings)}`;
  const changeOf = ({ stride, channels }) => `stride ${stride}, channels ${channels === "same" ? "kept" : "doubled"}`;
  const describe = (settings) => `${kindOf(settings)}, ${changeOf(settings)}, order: ${orders[settings.order]}`;

  function show({ settings, local, width }) {
    const now = blockOf(settings), pinned = local.pinned && blockOf(local.pinned.settings);
    return { picture: drawAll(pinned ? [pinned, now] : [now], width), say: sentence(now) + (pinned ? ` ${differences(now, pinned)}` : ""),
      detail: facts(now, pinned), table: tableFor(now), code: codeFor(now) };
  }

  const costs = (b) => `${whole(b.parameters)} parameters, ${whole(b.macs)} multiply-accumulates for one image`;
  const sentence = (b) => `${describe(b.settings).replace(/^b/, "B")}: ${shapeText(b.input)} to ${shapeText(b.output)}, ${costs(b)}.`;

  function differences(now, pinned) {
    const counted = (key, noun) => {
      const more = now[key] - pinned[key];
      return more ? `${whole(Math.abs(more))} ${noun} ${more > 0 ? "more" : "fewer"}` : `as many ${noun}`;
    };
    const [here, there] = [now, pinned].map(({ input, output }) => `${shapeText(input)} to ${shapeText(output)}`);
    const shapes = here === there ? "the same shapes" : `not the same shapes (pinned: ${there})`;
    const answers = [["identity", "the identity"], ["gradient", "the gradient along the shortcut"]].filter(([key]) => now[key] !== pinned[key]);
    const told = [counted("parameters", "parameters"), counted("macs", "multiply-accumulates"), shapes].join(", ");
    const asked = answers.length ? `; the answers differ on ${answers.map(([, noun]) => noun).join(" and ")}` : "";
    return `Pinned: ${describe(pinned.settings)}. Compared with it, ${told}${asked}.`;
  }

  // What the picture cannot show; where the pinned block's answer is another one, it follows.
  function facts(now, pinned) {
    const fact = (question, answer) => {
      const other = pinned && answer(pinned) !== answer(now) ? [html("br"), html("em", {}, "pinned: "), answer(pinned)] : [];
      return html("p", {}, html("strong", {}, `${question} `), answer(now), other);
    };
    return [
      fact("Costs for one image:", (b) => `${whole(b.parameters)} parameters, ${whole(b.macs)} MACs, ${bytes(b.memory)} of outputs in float32`),
      fact("Identity reachable?", (b) => b.identity),
      fact("Gradient undamped along the shortcut, with a branch of zeros?", (b) => b.gradient),
    ];
  }

  // One block under its heading, or two: side by side where there is room, else one below the other.
  function drawAll(list, width) {
    const beside = list.length > 1 && width >= 600, each = beside ? (width - 24) / 2 : width, head = list.length > 1 ? 62 : 0;
    const drawn = list.map((block) => drawBlock(block, each));
    const picture = svg("svg", { width, role: "img", "aria-label": list.map(inWords).join(" Next: ") });
    let y = 0;
    drawn.forEach(({ group, height }, i) => {
      const { settings } = list[i], x = beside ? i * (each + 24) : 0;
      const heading = head ? [`${i ? "now" : "pinned"}: ${kindOf(settings)}`, changeOf(settings), orders[settings.order]] : [];
      group.prepend(...heading.map((text, line) =>
        svg("text", { x: each / 2, y: 14 + 16 * line - head, "text-anchor": "middle", "font-weight": line ? 400 : 700 }, text)));
      group.setAttribute("transform", `translate(${x} ${y + head})`);
      picture.append(group);
      if (!beside) y += height + head + 24;
    });
    picture.setAttribute("height", beside ? head + Math.max(...drawn.map((d) => d.height)) : y - 24);
    return picture;
  }

  function inWords({ settings, through, around, split, residual, input, output }) {
    const path = around.map(({ label }) => label).join(", ") || "identity";
    const leaves = split ? `, which leaves after the first ${through[split - 1].label}` : "";
    const shortcut = residual ? `The shortcut on the left${leaves}: ${path}.` : "There is no shortcut.";
    return `${describe(settings)}, from ${shapeText(input)} to ${shapeText(output)}: ${through.map(({ label }) => label).join(", ")}. ${shortcut}`;
  }

  // Data flows down: the branch on the right, the shortcut on the left. Beside each arrow, the shape that travels on it.
  function drawBlock(block, width) {
    const { through, around, split, residual, input } = block, tiny = width < 290, group = svg("g", { "font-size": tiny && 10.5 });
    const roomy = width >= 500, box = roomy ? 156 : Math.min(138, (width - 26) / 2), gap = roomy ? 56 : Math.min(24, width - 2 * box - 16);
    const beside = roomy ? 120 : Math.max(0, 72 - box / 2); // what stands beside the boxes, and beyond their edge
    const left = (width - 2 * box - gap - beside) / 2 + box / 2, right = left + box + gap;
    const muted = { "font-size": 11, style: "fill: var(--rb-muted)" };
    const colour = residual ? INK : "var(--rb-plain)";
    const put = (...elements) => group.append(...elements);
    const text = (x, y, content, attributes) => put(svg("text", { x, y, ...attributes }, content));
    const line = (pairs, stroke) => put(svg("polyline", { points: points(pairs), fill: "none", stroke, "stroke-width": 1.8 }));
    const layerBox = (x, y, { label, name }, stroke, dashed) => {
      put(svg("rect", { x: x - box / 2, y, width: box, height: BOX, rx: 4, fill: "none", stroke, "stroke-width": 1.6,
        "stroke-dasharray": dashed && "5 3", "data-layer": name }));
      text(x, y + 19.5, label, { "text-anchor": "middle", style: `fill: ${stroke}` });
    };
    const shape = (x, y, layer) => text(x, y, shapeText(layer), { "font-size": tiny ? 10 : 11, "font-family": "ui-monospace, monospace" });
    const arrow = (y, layer) => {
      line([[right, y], [right, y + ARROW - 6]], INK);
      put(svg("polygon", { points: points([[right, y + ARROW], [right - 4, y + ARROW - 8], [right + 4, y + ARROW - 8]]), fill: INK }));
      if (layer) shape(right + 9, y + ARROW / 2 + 3, layer);
      return y + ARROW;
    };

    let y = 2, from = input, top = 0;
    through.forEach((layer, i) => {
      if (residual && i === split) top = y + ARROW / 2 - 3;
      y = arrow(y, from);
      if (layer.label === "add") {
        drawShortcut(top, y + 11);
        y += 22;
      } else {
        layerBox(right, y, layer, colour, !residual);
        if (roomy && layer.parameters) text(right + box / 2 + 9, y + 19, `${whole(layer.parameters)} parameters`, muted);
        y += BOX;
      }
      from = layer;
    });
    y = arrow(y);
    text(right, y + 14, shapeText(from), { "text-anchor": "middle", "font-weight": 700, "font-family": "ui-monospace, monospace" });
    return { group, height: y + 22 };

    // In pieces from box to box, so that nothing has to be painted over.
    function drawShortcut(top, join) {
      const step = BOX + ARROW, height = around.length * step - ARROW;
      let at = (top + join - height) / 2, start = [[right, top], [left, top]];
      for (const layer of around) {
        line([...start, [left, at]], SHORTCUT);
        layerBox(left, at, layer, SHORTCUT);
        start = [[left, at + BOX]];
        at += step;
      }
      line([...start, [left, join], [right - 18, join]], SHORTCUT);
      put(svg("polygon", { points: points([[right - 11, join], [right - 19, join - 4], [right - 19, join + 4]]), fill: SHORTCUT }),
        svg("circle", { cx: right, cy: join, r: 11, fill: "none", stroke: SHORTCUT, "stroke-width": 1.8 }),
        svg("path", { d: `M ${right - 5} ${join} h 10 m -5 -5 v 10`, stroke: SHORTCUT, "stroke-width": 1.8 }));
      if (around.length) shape(left + 9, at - ARROW / 2 + 3, around.at(-1));
      else text(left - 8, (top + join) / 2, "identity", { "text-anchor": "end", style: `fill: ${SHORTCUT}` });
    }
  }

  function tableFor(b) {
    const line = (name, label, layer, shown) => {
      const values = [name, label, shown, whole(layer.parameters), whole(layer.macs), bytes(layer.memory)];
      values.attributes = { "data-layer": name, "data-numbers": JSON.stringify([layer.channels, layer.size, layer.parameters, layer.macs, layer.memory]) };
      return values;
    };
    return { caption: `${b.call} on ${shapeText(b.input)}: for one image; memory counts every output in float32`, text: 2,
      head: ["layer", "operation", "output", "parameters", "MACs", "memory"],
      rows: [...b.layers.map((layer) => line(layer.name, layer.label, layer, shapeText(layer))),
        line("total", "", { ...b, channels: b.output.channels, size: b.output.size }, shapeText(b.output))] };
  }

  const codeFor = ({ settings, call, input }) =>
    `from resbook import ${settings.block}, trace_shapes\n\nblock = ${call}\nprint(trace_shapes(block, (${input.channels}, ${input.size}, ${input.size})))\n`;

  return { show, describe };
}
