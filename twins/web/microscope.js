// The microscope: draws what one unit of a network reads. Its data, window.MICROSCOPE, are written by `twins microscope`.
// A unit is [row, column] of a map, from 0. Map 0 is the image, map n the output of the n-th layer.
(function () {
  "use strict";
  const data = window.MICROSCOPE;
  const root = document.getElementById("microscope");
  if (!root || !data) return;

  const READ = [255, 150, 20], HEARD = [60, 180, 255], UNREAD = [10, 14, 20];
  const state = { network: 0, layer: 1, onto: 0, unit: [0, 0], compared: [0.5, 0.5] };

  // What a unit reads, as twins/microscope.py computes it too.

  const mapOf = (network, number) => (number ? network.layers[number - 1].map : network.input);

  // For each position of the map that a window reads, the sum of the values of all positions that it is read by.
  function spread(map, [kernel, stride, dilation, top, left, height, width]) {
    const values = new Float64Array(height * width);
    for (let r = 0; r < map.height; r++) {
      for (let c = 0; c < map.width; c++) {
        const value = map.values[r * map.width + c];
        if (!value) continue;
        for (let i = 0; i < kernel; i++) {
          const row = r * stride - top + i * dilation;
          if (row < 0 || row >= height) continue;
          for (let j = 0; j < kernel; j++) {
            const column = c * stride - left + j * dilation;
            if (column >= 0 && column < width) values[row * width + column] += value;
          }
        }
      }
    }
    return { values, height, width };
  }

  // How much a unit reads of each position of map `onto`; 0 is not read.
  function reading(network, layer, unit, onto) {
    const [height, width] = mapOf(network, layer);
    let share = { values: new Float64Array(height * width), height, width };
    share.values[unit[0] * width + unit[1]] = 1;
    for (let number = layer; number > onto; number--) {
      let total = null;
      for (const way of network.layers[number - 1].ways) {
        let back = share;
        for (const window of [...way].reverse()) {
          back = spread(back, window);
          back.values = back.values.map((value) => value / window[0] ** 2);
        }
        if (total) total.values = total.values.map((value, i) => value + back.values[i]);
        else total = back === share ? { ...share, values: share.values.slice() } : back;
      }
      share = total;
      const largest = share.values.reduce((a, b) => Math.max(a, b), 0);
      share.values = share.values.map((value) => (value ? Math.max(value / largest, 1e-200) : 0)); // not read is 0 alone
    }
    return share;
  }

  // The theoretical field, [top, left, bottom, right], the last included; it may reach into the padding.
  function fieldOf(network, layer, unit, onto) {
    let box = [...unit, ...unit];
    for (let number = layer; number > onto; number--) {
      const boxes = network.layers[number - 1].ways.map((way) =>
        [...way].reverse().reduce(([t, l, b, r], [kernel, stride, dilation, top, left]) => {
          const more = dilation * (kernel - 1);
          return [t * stride - top, l * stride - left, b * stride - top + more, r * stride - left + more];
        }, box)
      );
      box = [0, 1, 2, 3].map((side) => Math[side < 2 ? "min" : "max"](...boxes.map((one) => one[side])));
    }
    return box;
  }

  // Of all that a unit reads, the share on its own lattice: the positions a multiple of the period away from it.
  function ownLattice({ values, width }, unit, period) {
    const own = (i) => (Math.floor(i / width) - unit[0]) % period === 0 && ((i % width) - unit[1]) % period === 0;
    return values.reduce((sum, value, i) => sum + (own(i) ? value : 0), 0) / values.reduce((sum, value) => sum + value, 0);
  }

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

  // The measured effective field in bytes, moved from the central unit to another.
  function heard(network, layer, unit) {
    const { effective, centre, stride } = network.layers[layer - 1];
    const [height, width] = network.input, values = new Uint8Array(height * width), stored = bytes(effective.values);
    const [top, left] = effective.box.map((edge, axis) => edge + (unit[axis] - centre[axis]) * stride);
    const { block } = effective, [rows, columns] = effective.shape;
    for (let r = Math.max(top, 0); r < Math.min(top + rows * block, height); r++) {
      for (let c = Math.max(left, 0); c < Math.min(left + columns * block, width); c++) {
        values[r * width + c] = stored[Math.floor((r - top) / block) * columns + Math.floor((c - left) / block)];
      }
    }
    return { values, height, width };
  }

  // The page.

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function paint(canvas, height, width, colour) {
    Object.assign(canvas, { width, height });
    const pixels = new ImageData(width, height);
    for (let i = 0; i < width * height; i++) pixels.data.set(colour(i), 4 * i);
    canvas.getContext("2d").putImageData(pixels, 0, 0);
  }

  // Positions that are read are orange, the others dark.
  function paintReading(canvas, map, over) {
    const largest = map.values.reduce((a, b) => Math.max(a, b), 0);
    paint(canvas, map.height, map.width, (i) =>
      map.values[i] ? [...READ, 64 + 191 * Math.sqrt(map.values[i] / largest) * (over ? 0.8 : 1)] : [...UNREAD, over ? 165 : 255]
    );
  }

  // Puts a mark over the positions of a box, in a map of this size.
  function place(mark, [top, left, bottom, right], [height, width], centred) {
    const h = ((bottom - top + 1) / height) * 100, w = ((right - left + 1) / width) * 100;
    Object.assign(mark.style, {
      top: `${(top / height) * 100 + (centred ? h / 2 : 0)}%`,
      left: `${(left / width) * 100 + (centred ? w / 2 : 0)}%`,
      height: `${h}%`, width: `${w}%`,
    });
  }

  const cell = (stage, event, [height, width]) => {
    const box = stage.getBoundingClientRect();
    const at = [((event.clientY - box.top) / box.height) * height, ((event.clientX - box.left) / box.width) * width];
    return [Math.floor(at[0]), Math.floor(at[1])];
  };
  const clamp = (unit, map) => unit.map((at, axis) => Math.min(Math.max(at, 0), map[axis] - 1));
  const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const moved = (event) => {
    const move = MOVES[event.key];
    if (move) event.preventDefault();
    return move && move.map((step) => step * (event.shiftKey ? 5 : 1));
  };
  const by = ([height, width]) => `${height} x ${width}`;
  const nameOf = (network, number) => (number ? network.layers[number - 1].name : "image");

  function panel(id, title, focus) {
    const canvas = make("canvas", { id: `microscope-${id}`, role: "img" });
    const mark = make("div", { class: "microscope-mark" });
    const attributes = focus ? { tabindex: "0", role: "application", "aria-describedby": "microscope-how" } : {};
    const stage = make("div", { class: "microscope-stage", ...attributes }, canvas, mark);
    const caption = make("span");
    const figure = make("figure", {}, stage, make("figcaption", {}, make("strong", {}, title), caption));
    return { figure, stage, canvas, mark, caption };
  }

  const select = (id) => make("select", { id });
  const networks = select("microscope-network"), ontos = select("microscope-onto");
  const layers = make("div", { class: "microscope-layers", role: "group", "aria-label": "Layer" });
  const status = make("p", { class: "microscope-status", role: "status", "aria-live": "polite" });
  const numbers = make("dl", { class: "microscope-numbers" });
  const map = panel("map", "1. The layer’s map", true);
  const reads = panel("reads", "2. What the unit can read", false);
  const hears = panel("hears", "3. What it listens to", false);
  map.mark.classList.add("unit");
  reads.picture = make("img", { src: data.picture, alt: "" });
  hears.picture = make("img", { src: data.picture, alt: "" });
  reads.stage.prepend(reads.picture);
  hears.stage.prepend(hears.picture);
  const compared = data.networks.filter((network) => network.layers.some((layer) => Math.max(0, ...layer.dilations) > 1));

  const network = () => data.networks[state.network];
  const layerNow = () => network().layers[state.layer - 1];

  function chooseNetwork(number) {
    Object.assign(state, { network: number, onto: 0 });
    layers.replaceChildren(
      ...network().layers.map((layer, i) => {
        const button = make("button", { type: "button", title: layer.type }, layer.name);
        button.addEventListener("click", () => chooseLayer(i + 1));
        return button;
      })
    );
    chooseLayer(network().layers.length);
  }

  // Each layer starts at its central unit, where its effective field was measured.
  function chooseLayer(number) {
    state.layer = number;
    state.unit = [...layerNow().centre];
    state.onto = Math.min(state.onto, number - 1);
    ontos.replaceChildren();
    for (let i = 0; i < number; i++) ontos.append(make("option", { value: i }, i ? `map of ${nameOf(network(), i)}` : "image"));
    ontos.value = state.onto;
    [...layers.children].forEach((button, i) => button.setAttribute("aria-pressed", i + 1 === number));
    draw();
  }

  function draw() {
    const layer = layerNow(), here = network(), { unit, onto } = state, seen = mapOf(here, onto);
    const share = reading(here, state.layer, unit, onto), box = fieldOf(here, state.layer, unit, onto);
    const image = fieldOf(here, state.layer, unit, 0);
    drawMap(layer, unit);
    drawReads(share, box, seen, onto);
    drawHears(layer, unit, image);
    tell(layer, share, box, image);
  }

  function drawMap(layer, unit) {
    const [height, width] = layer.map, { canvas, stage, mark, caption } = map;
    stage.style.aspectRatio = `${width} / ${height}`;
    Object.assign(canvas, { width, height });
    if (reads.picture.complete) canvas.getContext("2d").drawImage(reads.picture, 0, 0, width, height);
    place(mark, [...unit, ...unit], layer.map, true);
    stage.setAttribute("aria-label", `Map of ${layer.name}, ${by(layer.map)} units. Arrow keys move the unit.`);
    canvas.setAttribute("aria-label", `The picture in the ${by(layer.map)} positions of the map of ${layer.name}.`);
    caption.textContent = `${layer.name} has ${by(layer.map)} units, one every ${layer.stride} pixel${
      layer.stride > 1 ? "s" : ""}. Click one, or move with the arrow keys.`;
  }

  function drawReads(share, box, seen, onto) {
    const { canvas, stage, mark, caption, picture } = reads, where = onto ? `the map of ${nameOf(network(), onto)}` : "the image";
    const count = share.values.reduce((total, value) => total + (value > 0), 0);
    stage.style.aspectRatio = `${seen[1]} / ${seen[0]}`;
    picture.hidden = onto > 0;
    paintReading(canvas, share, !onto);
    place(mark, box, seen);
    const size = [box[2] - box[0] + 1, box[3] - box[1] + 1];
    caption.textContent = `Orange: the ${count.toLocaleString("en")} positions of ${where} (${by(seen)}) that are read. White: ` +
      `the theoretical receptive field, ${by(size)}.`;
    canvas.setAttribute("aria-label", `What the unit reads of ${where}: ${count} of ${seen[0] * seen[1]} positions.`);
  }

  function drawHears(layer, unit, image) {
    const { canvas, stage, mark, caption } = hears, found = heard(network(), state.layer, unit);
    stage.style.aspectRatio = `${found.width} / ${found.height}`;
    paint(canvas, found.height, found.width, (i) => {
      const value = found.values[i] / 255, over = 0.85 * value + 0.6 * (1 - value);
      return [...UNREAD.map((dark, k) => (dark * 0.6 * (1 - value) + HEARD[k] * 0.85 * value) / over), 255 * over];
    });
    place(mark, image, network().input);
    const still = unit.every((at, axis) => at === layer.centre[axis]);
    const { block, side } = layer.effective;
    caption.textContent = `Blue: the effective field, about ${Math.round(side)} pixels square: gradients in ${network().framework}, mean of ` +
      `${data.inputs} inputs, initial weights${block > 1 ? `, in blocks of ${block} x ${block} pixels` : ""}. ` +
      (still ? "Measured at this unit." : `Measured at unit (${layer.centre.join(", ")}) and moved here.`);
    canvas.setAttribute("aria-label", `Effective receptive field of the unit, about ${Math.round(side)} pixels square.`);
  }

  function tell(layer, share, box, image) {
    const [height, width] = [image[2] - image[0] + 1, image[3] - image[1] + 1], dilation = layer.dilations.join(", ") || "none";
    const count = share.values.reduce((total, value) => total + (value > 0), 0), total = share.values.length;
    const inside = [0, 1].map((a) => Math.min(box[a + 2], [share.height, share.width][a] - 1) - Math.max(box[a], 0) + 1);
    const outside = image[0] < 0 || image[1] < 0 || image[2] >= network().input[0] || image[3] >= network().input[1];
    const where = state.onto ? `the map of ${nameOf(network(), state.onto)}` : "the image";
    status.textContent = `${layer.name}, unit (${state.unit.join(", ")}) of ${by(layer.map)}: receptive field ${by([height, width])} ` +
      `pixels from (${image[0]}, ${image[1]})${outside ? ", beyond the image in part" : ""}, stride ${layer.stride}, ` +
      `dilation ${dilation}. It reads ${count} of ${total} positions of ${where}.`;
    const rows = [
      ["Map", by(layer.map)],
      ["Unit (row, column)", `(${state.unit.join(", ")})`],
      ["Stride", `${layer.stride} px`],
      ["Dilation", dilation],
      ["Receptive field", `${by([height, width])} px`],
      ["Effective field", `≈ ${by([0, 1].map(() => Math.round(layer.effective.side)))} px`],
      ["Read within the field", `${Math.round((100 * count) / (inside[0] * inside[1]))} %`],
    ];
    numbers.replaceChildren(...rows.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  }

  function moveTo(unit) {
    state.unit = clamp(unit, layerNow().map);
    draw();
  }

  // Side by side: the last layer of each dilated network, seen on the map that its largest dilation reads.
  const columns = compared.map((one) => {
    const last = one.layers.length, most = Math.max(...one.layers.flatMap((layer) => layer.dilations));
    const onto = one.layers.findIndex((layer) => layer.dilations.includes(most));
    return { one, last, most, onto, ...panel(`grid-${one.name}`, one.title, true) };
  });

  function drawColumns() {
    for (const { one, last, most, onto, canvas, stage, mark, caption } of columns) {
      const size = mapOf(one, last), seen = mapOf(one, onto);
      const unit = clamp(state.compared.map((at, axis) => Math.floor(at * size[axis])), size);
      const share = reading(one, last, unit, onto), count = share.values.reduce((total, value) => total + (value > 0), 0);
      stage.style.aspectRatio = `${seen[1]} / ${seen[0]}`;
      paintReading(canvas, share, false);
      place(mark, fieldOf(one, last, unit, onto), seen);
      const own = (100 * ownLattice(share, unit, most)).toFixed(1), even = (100 / most ** 2).toFixed(1);
      const text = `${nameOf(one, last)}, unit (${unit.join(", ")}), reads ${count} of ${share.values.length} positions of the map of ` +
        `${nameOf(one, onto)}; ${own} % of it from every ${most}th row and column (evenly: ${even} %).`;
      caption.textContent = text;
      canvas.setAttribute("aria-label", `${one.title}: ${text}`);
      stage.setAttribute("aria-label", `${one.title}: ${text} Arrow keys move the unit.`);
    }
  }

  function build() {
    const legend = [
      ["unit", "the unit"], ["field", "theoretical receptive field"], ["read", "read, a little to most"],
      ["", "not read"], ["heard", "gradient, 0 to its peak"],
    ].map(([kind, text]) => make("li", {}, make("span", { class: `microscope-swatch ${kind}` }), text));
    root.classList.add("microscope");
    root.replaceChildren(
      make("p", { id: "microscope-how" }, "Choose a network and a layer, then click a unit of its map, or move it with the arrow " +
        "keys (with Shift, by five)."),
      make("div", { class: "microscope-bar" }, make("label", {}, "Network ", networks), make("label", {}, "Seen on ", ontos)),
      layers, status,
      make("div", { class: "microscope-panels" }, map.figure, reads.figure, hears.figure),
      make("ul", { class: "microscope-legend" }, ...legend),
      numbers
    );
    if (columns.length) {
      root.append(
        make("h2", {}, "Gridding, side by side"),
        make("p", {}, "A unit of the last layer, and what it reads of the map at which the largest dilation starts. Click a place " +
          "in one map, or use the arrow keys: all follow."),
        make("div", { class: "microscope-panels" }, ...columns.map((column) => column.figure))
      );
    }
    data.networks.forEach((one, i) => networks.append(make("option", { value: i }, one.title)));
  }

  function listen() {
    networks.addEventListener("change", () => chooseNetwork(Number(networks.value)));
    ontos.addEventListener("change", () => {
      state.onto = Number(ontos.value);
      draw();
    });
    map.stage.addEventListener("click", (event) => moveTo(cell(map.stage, event, layerNow().map)));
    map.stage.addEventListener("keydown", (event) => {
      const move = moved(event);
      if (move) moveTo(state.unit.map((at, axis) => at + move[axis]));
    });
    for (const { stage } of [reads, hears]) {
      stage.addEventListener("click", (event) => moveTo(cell(stage, event, layerNow().map)));
    }
    for (const { one, last, stage } of columns) {
      const size = mapOf(one, last), go = (unit) => {
        state.compared = clamp(unit, size).map((at, axis) => (at + 0.5) / size[axis]);
        drawColumns();
      };
      stage.addEventListener("click", (event) => go(cell(stage, event, size)));
      stage.addEventListener("keydown", (event) => {
        const move = moved(event);
        if (move) go(state.compared.map((at, axis) => Math.floor(at * size[axis]) + move[axis]));
      });
    }
    reads.picture.addEventListener("load", draw);
  }

  build();
  chooseNetwork(0);
  drawColumns();
  listen();
})();
