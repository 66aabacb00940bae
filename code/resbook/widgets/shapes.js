// The shape explorer. Python sends each kind of block once; here only the output-size formula and products are computed.

function explore(data) {
  const { networks, blocks } = data;

  // One layer's row: what comes out of it and what it costs. Throws { name, why } where the input does not fit.
  function step(name, layer, input, batch) {
    const [, operation, channels, kernel, stride, padding, parameters, perPosition] = layer;
    let { size, field, jump } = input;
    if (operation === "AdaptiveAvgPool2d") {
      field += (size - 1) * jump;
      size = 1;
    } else if (kernel) {
      if (size + 2 * padding < kernel) {
        const why = `its kernel needs ${kernel} positions and there are ${size}${padding ? ` with ${padding} of padding at each end` : ""}`;
        throw { name, why };
      }
      size = Math.floor((size + 2 * padding - kernel) / stride) + 1;
      field += (kernel - 1) * jump;
      jump *= stride;
    }
    const output = { channels: channels ?? input.channels, size, field, jump };
    const macs = perPosition * size * size * batch;
    return { name, operation, kernel, stride, padding, input, output, parameters, macs, perPosition, bytes: 4 * output.channels * size * size * batch };
  }

  function stepBlock(name, layers, input, batch, rows) {
    let branch = input, around = input;
    for (const layer of layers) {
      const onShortcut = layer[0].startsWith("downsample"), joins = layer[1] === "add";
      const before = onShortcut ? around : joins ? { ...branch, field: Math.max(branch.field, around.field) } : branch;
      const row = step(joins ? name : `${name}.${layer[0]}`, layer, before, batch);
      rows.push(row);
      if (onShortcut) around = row.output;
      else branch = row.output;
    }
    return branch;
  }

  // The whole network: `parts` are the lines of the folded table, each with the rows of its layers.
  function trace({ network, variant, head, size, batch, classes }) {
    const { stem, stages, pool, features } = networks[network].variants[variant];
    let state = { channels: 3, size, field: 1, jump: 1 };
    const parts = [];
    try {
      for (const layer of stem) {
        const row = step(layer[0], layer, state, batch);
        state = row.output;
        parts.push({ id: row.name, rows: [row] });
      }
      stages.forEach((kinds, s) => {
        let number = 0;
        for (const [kind, count] of kinds) {
          const run = { first: number, members: [] };
          for (let i = 0; i < count; i++, number++) {
            const id = `layer${s + 1}.${number}`, rows = [];
            const input = state;
            state = stepBlock(id, blocks[kind], state, batch, rows);
            run.members.push({ id, rows, block: true, input });
          }
          parts.push(count === 1 ? run.members[0]
            : { id: `layer${s + 1}.${run.first}–${number - 1}`, count, members: run.members, rows: run.members.flatMap((m) => m.rows) });
        }
      });
      const pooling = head === "global" ? ["avgpool", "AdaptiveAvgPool2d", null, 0, 0, 0, 0, 0] : ["avgpool", "AvgPool2d", null, pool, 1, 0, 0, 0];
      const pooled = step("avgpool", pooling, state, batch);
      parts.push({ id: "avgpool", rows: [pooled] });
      const values = pooled.output.channels * pooled.output.size ** 2;
      if (values !== features) {
        const shape = [pooled.output.channels, pooled.output.size, pooled.output.size].join("·");
        throw { name: "fc", why: `it was built for ${whole(features)} values and gets ${shape} = ${whole(values)}` };
      }
      const linear = step("fc", ["fc", "Linear", classes, 0, 0, 0, (features + 1) * classes, features * classes], pooled.output, batch);
      parts.push({ id: "fc", rows: [linear] });
    } catch (failure) {
      if (!failure.why) throw failure;
      return finish(parts, failure);
    }
    return finish(parts, null);
  }

  const sum = (rows, key) => rows.reduce((total, row) => total + row[key], 0);
  function finish(parts, failure) {
    const rows = parts.flatMap((part) => part.rows);
    return { parts, rows, failure, parameters: sum(rows, "parameters"), macs: sum(rows, "macs"), bytes: sum(rows, "bytes"),
      last: [...rows].reverse().find((row) => row.operation !== "Linear" && row.name !== "avgpool") };
  }

  const shapeText = ({ channels, size }, operation) => (operation === "Linear" ? whole(channels) : `${channels}×${size}×${size}`);
  // The plain counterpart is no ResNet, and version 1 differs in bottlenecks only.
  function describe({ network, variant, head, size }) {
    const { label, layers } = networks[network], name = variant === "plain" ? label.replace("ResNet", "plain") : label;
    return `${name.replace(/^plain/, "Plain")}${variant === "v1" && layers ? ", v1" : ""} at ${size}${head === "fixed" ? ", fixed window" : ""}`;
  }

  // A block calls its one ReLU several times: each call is a line of its own.
  function nameOf(rows, i) {
    const { name, operation } = rows[i], before = rows.slice(0, i).filter((row) => row.name === name).length;
    return operation === "add" ? `${name}.add` : before ? `${name} (${before + 1})` : name;
  }

  // What is listed: a run of equal blocks is one line until it is unfolded, a block one line until its layers are asked for.
  function lines(parts, open, level = 0) {
    return parts.flatMap((part) => {
      const inner = part.members ?? (part.block ? part.rows.map((row, i) => ({ id: nameOf(part.rows, i), rows: [row] })) : null);
      const unfolded = inner && open.includes(part.id);
      return [{ ...part, level, inner, unfolded }, ...(unfolded ? lines(inner, open, level + 1) : [])];
    });
  }

  function show({ settings, local, keep, width }) {
    const now = trace(settings), open = local.open ?? [], pinned = local.pinned && trace(local.pinned.settings);
    const listed = lines(now.parts, open);
    const chosen = listed.find((line) => line.id === local.chosen) ?? listed.find((line) => line.id === "conv1");
    const choose = (id) => keep({ chosen: id });
    const toggle = (id) => keep({ open: open.includes(id) ? open.filter((other) => other !== id) : [...open, id] });
    const strips = pinned ? [[pinned, lines(pinned.parts, []), local.pinned.label, local.pinned.settings], [now, listed, describe(settings), settings]] : [[now, listed, null, settings]];
    return {
      picture: drawStrips(strips, width, chosen.id, choose),
      say: sentence(now, settings) + (pinned ? ` Pinned, ${local.pinned.label}: ${totals(pinned)}.` : ""),
      table: tableFor(now, listed, settings, chosen.id, choose, toggle),
      detail: explain(now, chosen, settings),
      code: code(settings),
    };
  }

  const totals = (t) => `${whole(t.parameters)} parameters, ${whole(t.macs)} multiply-accumulates, ${bytes(t.bytes)} of outputs`;
  function sentence(t, settings) {
    const images = settings.batch === 1 ? "one image" : `${settings.batch} images`;
    if (t.failure) return `${describe(settings)} does not fit: ${t.failure.name} refuses, because ${t.failure.why}. Up to there, for ${images}: ${totals(t)}.`;
    return `${describe(settings)}, ${images}: ${totals(t)}. The last map is ${shapeText(t.last.output)}.${halvings(t, settings)}`;
  }

  // Where a size is odd somewhere, the halvings are worth a look.
  function halvings(t, { size }) {
    const sizes = [...new Set([size, ...t.rows.filter((row) => row.kernel && row.name !== "avgpool").map((row) => row.output.size)])];
    const odd = sizes.slice(0, -1).some((n) => n % 2);
    return odd ? ` ${sizes.join(" → ")}: each half of the one before, rounded up.` : "";
  }

  // Blocks, folded as they are in the table, and what changes a shape outside of them; layers inside a block are not.
  const isDrawn = ({ id, members, block, unfolded }) => block || (members ? !unfolded : ["conv1", "maxpool", "avgpool", "fc"].includes(id));

  // Every tensor from the side: as high as its map, as thick as it has channels, both to scale.
  function drawStrips(strips, width, chosenId, choose) {
    const narrow = width < 520, gap = narrow ? 3 : 8, height = narrow ? 90 : 130, top = 32;
    const items = strips.map(([t, listed, , settings]) => [
      { id: "", label: "input", tensor: { channels: 3, size: settings.size } },
      ...listed.filter(isDrawn).map((line) => {
        const last = line.rows.at(-1);
        return { id: line.id, label: line.count ? `×${line.count}` : "", tensor: last.output, flat: last.operation === "Linear" };
      }),
      ...(t.failure ? [{ id: "", label: t.failure.name, failed: true, tensor: { channels: 0, size: 0 } }] : []),
    ]);
    const most = Math.max(...items.flat().map((item) => item.tensor.size)), scale = (height - 4) / most;
    const room = Math.min(...items.map((strip) => (width - strip.length * (gap + 2) - 30) / strip.reduce((s, item) => s + item.tensor.channels, 0)));
    const slot = Math.max(2, Math.max(...items.map((strip) => strip.length)) > (narrow ? 14 : 20) ? 2 : narrow ? 20 : 34);
    const picture = svg("svg", { width, height: strips.length * (height + 76), role: "img" });
    items.forEach((strip, s) => {
      const [, , label, settings] = strips[s], middle = top + s * (height + 76) + height / 2;
      const total = strip.reduce((sum, item) => sum + Math.max(slot, item.tensor.channels * room), 0);
      const thickness = total + strip.length * gap > width ? (width - strip.length * gap) / total : 1;
      const colour = settings.variant === "plain" ? "plain" : "residual";
      if (label) picture.append(svg("text", { x: width, y: top + s * (height + 76) - 20, "text-anchor": "end", "font-weight": 600 }, label));
      let x = 0, stage = "";
      const ends = [0, 0, 0]; // of the last text in each line: one that would run into it is left out
      const write = (group, line, centre, texts, attributes = {}) => {
        const half = (text) => text.length * (narrow ? 2.5 : 2.9), within = (text) => Math.min(Math.max(centre, half(text)), width - half(text));
        const text = texts.find((t) => within(t) - half(t) >= ends[line]);
        if (!text) return;
        const at = within(text);
        ends[line] = at + half(text) + 2;
        group.append(svg("text", { x: at, y: middle + height / 2 + 12 + 13.5 * line, "text-anchor": "middle", "font-size": narrow ? 9 : 11, ...attributes }, text));
      };
      for (const item of strip) {
        const { channels, size } = item.tensor, space = Math.max(slot, channels * room) * thickness;
        const wide = Math.max(1.5, channels * room * thickness), high = Math.max(1.5, (item.flat ? 1 : size) * scale);
        const group = svg("g", { class: "rbw-tensor", "data-layer": item.id, onclick: () => item.id && choose(item.id), style: item.id ? "cursor: pointer" : null });
        group.append(svg("title", {}, item.failed ? `${item.label} does not fit` : `${item.id || "input"}: ${channels}×${size}×${size}`));
        if (item.failed) {
          group.append(svg("rect", { x, y: middle - 24, width: slot, height: 48, fill: "none", stroke: "var(--rb-plain)", "stroke-width": 2, "stroke-dasharray": "4 3" }),
            svg("text", { x: x + slot / 2, y: middle + 4, "text-anchor": "middle", "font-weight": 700 }, "✕"));
        } else {
          group.append(svg("rect", { x: x - gap / 2, y: middle - height / 2, width: space + gap, height, fill: "transparent" }),
            svg("rect", { x: x + (space - wide) / 2, y: middle - high / 2, width: wide, height: high, fill: `var(--rb-${item.id ? colour : "green"})`,
              "fill-opacity": 0.35, stroke: `var(--rb-${item.id ? colour : "green"})`, "stroke-width": item.id && item.id === chosenId ? 3 : 1,
              "stroke-dasharray": colour === "plain" && item.id ? "4 2" : null }));
        }
        const at = x + space / 2, name = item.failed ? item.label : { "": "input", maxpool: "pool", avgpool: "pool" }[item.id] ?? item.id.split(".")[0];
        if (!item.flat && !item.failed) write(group, 0, at, [`${size}²`, `${size}`]);
        if (!item.failed) write(group, 1, at, [`${channels}`]);
        if (name !== stage) write(group, 2, at, [name, name.replace("layer", "L").replace("input", "in")], { fill: "var(--rb-muted)" });
        stage = name;
        if (slot > 10 && item.label.startsWith("×")) {
          group.append(svg("text", { x: at, y: middle - height / 2 - 3, "text-anchor": "middle", "font-size": 11, "font-weight": 700 }, item.label));
        }
        picture.append(group);
        x += space + gap;
      }
    });
    const [t, , , settings] = strips.at(-1);
    picture.setAttribute("aria-label", `Every tensor from the side, height by map size and thickness by channels. ${sentence(t, settings)}`);
    return picture;
  }

  function tableFor(t, listed, settings, chosenId, choose, toggle) {
    let parameters = 0, macs = 0;
    const share = (part, all) => `${((100 * part) / all).toFixed(1)} %`;
    const rows = listed.map((line) => {
      const last = line.rows.at(-1), cost = (key) => sum(line.rows, key);
      if (!line.unfolded) {
        parameters += cost("parameters");
        macs += cost("macs");
      }
      const fold = line.inner && html("button", { type: "button", "data-key": `fold ${line.id}`, "aria-expanded": String(Boolean(line.unfolded)),
        "aria-label": `${line.unfolded ? "Fold" : "Unfold"} ${line.id}`, onclick: () => toggle(line.id) }, line.unfolded ? "▾" : "▸");
      const name = html("button", { type: "button", "data-key": `layer ${line.id}`, "aria-pressed": String(line.id === chosenId),
        "aria-label": line.id, onclick: () => choose(line.id) },
        line.id.endsWith(".add") ? "+" : line.level ? line.id.split(".").slice(line.block ? 0 : 2).join(".") : line.id, line.count ? ` ×${line.count}` : "");
      const indent = html("span", { style: `display: inline-block; width: ${1.2 * line.level}rem` });
      const values = [html("span", {}, indent, fold, " ", name), shapeText(last.output, last.operation), whole(cost("parameters")), whole(cost("macs")),
        bytes(cost("bytes")), `${whole(last.output.field)}`, line.unfolded ? "" : `${share(parameters, t.parameters)} · ${share(macs, t.macs)}`];
      values.attributes = { "data-layer": line.id, "data-numbers": JSON.stringify([last.output.channels, last.output.size, cost("parameters"), cost("macs"), cost("bytes"), last.output.field]) };
      return values;
    });
    if (t.failure) rows.push([`${t.failure.name} ✕`, "does not fit", "", "", "", "", ""]);
    const batch = settings.batch === 1 ? "one image" : `a batch of ${settings.batch}`;
    return { caption: `${describe(settings)}: MACs and memory for ${batch}. MACs are those of convolutions and the linear layer; memory counts every layer's output in float32, nothing freed or reused; the receptive field is in pixels, the last column a running share of parameters and MACs.`,
      head: ["layer", "output", "parameters", "MACs", "memory", "receptive field", "running share"], rows };
  }

  const sizeFormula = ({ input, output, kernel, stride, padding }) => formula(mathml("mo", {}, "⌊"),
    fraction(`${input.size} + 2 · ${padding} − ${kernel}`, String(stride)), mathml("mo", {}, "⌋"), `+ 1 = ${output.size}`);

  // The chosen line with its numbers filled into the formulas.
  function explain(t, line, { batch }) {
    const title = html("p", {}, html("strong", {}, line.id.replace(/\.add$/, " +")));
    if (line.rows.length > 1) {
      const halving = line.rows.find((r) => r.kernel > 1 && r.stride > 1);
      return [title, html("p", {}, whyShortcut(line)), ...(halving ? [sizeFormula(halving)] : [])];
    }
    const [row_] = line.rows, { input, output, kernel, stride, padding, parameters, perPosition } = row_;
    const sized = kernel && row_.operation !== "Shortcut";
    const parts = [title];
    if (row_.operation === "add") parts.push(html("p", {}, `Branch and shortcut both are ${shapeText(output)}, so they can be added; nothing is learned.`));
    if (sized) {
      parts.push(html("p", {}, "Output size, kernel, stride and padding filled in:"), sizeFormula(row_));
    }
    if (row_.operation === "Conv2d") {
      const product = `${output.channels} · ${input.channels} · ${kernel} · ${kernel}`;
      parts.push(html("p", {}, "Parameters, and multiply-accumulates", batch > 1 ? ` for ${batch} images:` : ":"),
        formula(`${product} = ${whole(parameters)}`),
        formula(`${whole(perPosition)} · ${output.size} · ${output.size}${batch > 1 ? ` · ${batch}` : ""} = ${whole(row_.macs)}`));
    } else if (row_.operation === "Linear") {
      parts.push(html("p", {}, "Parameters, with one bias for each output:"), formula(`${output.channels} · ( ${input.channels} + 1 ) = ${whole(parameters)}`));
    } else if (row_.operation === "BatchNorm2d") {
      parts.push(html("p", {}, "A scale and a shift for each channel:"), formula(`2 · ${output.channels} = ${whole(parameters)}`));
    } else if (row_.operation === "Shortcut") {
      parts.push(html("p", {}, `Option A: every ${stride === 2 ? "second" : ""} position is taken and the ${output.channels - input.channels} new channels are zeros. Nothing is learned.`));
    } else if (row_.operation === "AdaptiveAvgPool2d") {
      parts.push(html("p", {}, `The mean of all ${input.size} · ${input.size} positions of each channel, whatever the size is: this is why other image sizes fit.`));
    }
    if (line.id.includes("downsample")) parts.push(html("p", {}, whyProjection(t, line.id)));
    const grows = sized && kernel > 1 ? `: ${input.field} + (${kernel} − 1) · ${input.jump} = ${output.field}` : ` of ${output.field}`;
    if (row_.operation !== "Linear") {
      const side = output.field === 1 ? "pixel" : "pixels";
      const beyond = output.field > t.rows[0].input.size ? ", more than the image has: the rest is padding" : "";
      parts.push(html("p", {}, `Receptive field${grows} ${side} along each axis${beyond}. Output: ${bytes(row_.bytes)} in float32.`));
    }
    return parts;
  }

  function whyProjection(t, id) {
    const name = id.split(".").slice(0, 2).join("."), rows = t.rows.filter((row) => row.name.startsWith(`${name}.`));
    const added = t.rows.find((row) => row.name === name).output, { input } = rows[0];
    return `The block's input is ${shapeText(input)} and its branch puts out ${shapeText(added)}. Tensors of different shapes cannot be added, so the shortcut has to change the shape too.`;
  }

  function whyShortcut(line) {
    const block = line.members?.[0] ?? line, output = block.rows.at(-1).output, adds = block.rows.some((row) => row.operation === "add");
    const each = line.count ? `Each of these ${line.count} blocks maps` : "This block maps";
    const shapes = `${each} ${shapeText(block.input)} to ${shapeText(output)}.`;
    if (!adds) return `${shapes} There is no shortcut: this is the plain network.`;
    const learned = block.rows.filter((row) => row.name.includes("downsample"));
    if (!learned.length) return `${shapes} The shapes are equal, so the shortcut is the identity and costs nothing.`;
    const kind = learned[0].operation === "Shortcut" ? "option A, subsampling and zeros" : `a projection of ${whole(sum(learned, "parameters"))} parameters`;
    return `${shapes} The shapes differ, so x cannot be added as it is: the shortcut is ${kind}.`;
  }

  function code({ network, variant, head, size, batch, classes }) {
    const { call, layers } = networks[network], plain = variant === "plain" ? ", residual=False" : "";
    const first = variant === "v1" && layers;
    const model = first
      ? `class BottleneckV1(Bottleneck):\n    stride_at = 1  # the first 1×1 convolution has the stride\n\nmodel = ResNet(BottleneckV1, [${layers.join(", ")}], num_classes=${classes})`
      : `model = ${call}num_classes=${classes}${plain})`;
    const fixed = head === "fixed" ? `model.avgpool = torch.nn.AvgPool2d(${networks[network].variants[variant].pool}, stride=1)\n` : "";
    const names = first ? "Bottleneck, ResNet" : call.split("(")[0];
    return `import torch\nfrom resbook import ${names}, trace_shapes\n\n${model}\n${fixed}` +
      `trace = trace_shapes(model, (3, ${size}, ${size}))  # for one image\nprint(trace)\noutput = model(torch.randn(${batch}, 3, ${size}, ${size}))\n`;
  }

  return { show, describe };
}
