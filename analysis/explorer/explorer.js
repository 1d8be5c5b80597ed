"use strict";
// Pure functions first; what touches the page comes last and only where there is one.

function decodeMaps(answer) {
  const bytes = Uint8Array.from(atob(answer.maps), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer), k = answer.k;
  return answer.highest.map((highest, t) =>
    Float64Array.from({ length: k }, (_, i) => (view.getUint16(2 * (t * k + i), true) / 65535) * highest));
}

function normalized(maps, how) {
  if (how !== "sequence" || maps.length === 0) return maps;
  const mean = new Float64Array(maps[0].length);
  for (const map of maps) for (let i = 0; i < mean.length; i++) mean[i] += map[i] / maps.length;
  return maps.map((map) => map.map((value, i) => value - mean[i]));
}

function aggregated(maps, tokens, how) {
  if (how === "first") return maps[tokens[0]].slice();
  const out = maps[tokens[0]].slice();
  for (const t of tokens.slice(1))
    for (let i = 0; i < out.length; i++) out[i] = how === "mean" ? out[i] + maps[t][i] : Math.max(out[i], maps[t][i]);
  return how === "mean" ? out.map((value) => value / tokens.length) : out;
}

// Weights of the cells at each pixel centre: cubic convolution with -0.75, as torch's bicubic upsampling has it.
function resampler(cells, start, end, pixels) {
  const A = -0.75, taps = new Int32Array(4 * pixels), weights = new Float64Array(4 * pixels);
  const near = (d) => ((A + 2) * d - (A + 3)) * d * d + 1;
  const far = (d) => ((A * d - 5 * A) * d + 8 * A) * d - 4 * A;
  for (let p = 0; p < pixels; p++) {
    const position = ((p + 0.5 - start) * cells) / (end - start) - 0.5, low = Math.floor(position);
    for (let tap = 0; tap < 4; tap++) {
      const d = Math.abs(position - low - tap + 1);
      taps[4 * p + tap] = Math.min(Math.max(low + tap - 1, 0), cells - 1);
      weights[4 * p + tap] = d <= 1 ? near(d) : d < 2 ? far(d) : 0;
    }
  }
  return { taps, weights };
}

function upsampled(map, grid, height, width, box) {
  const { h, w, index } = grid, [x0, y0, x1, y1] = box;
  const columns = resampler(w, x0, x1, width), rows = resampler(h, y0, y1, height);
  const wide = new Float64Array(h * width), out = new Float64Array(height * width);
  for (let r = 0; r < h; r++)
    for (let x = 0; x < width; x++)
      for (let i = 4 * x; i < 4 * x + 4; i++) wide[r * width + x] += columns.weights[i] * map[index[r * w + columns.taps[i]]];
  for (let y = 0; y < height; y++)
    for (let i = 4 * y; i < 4 * y + 4; i++) {
      const weight = rows.weights[i], from = rows.taps[i] * width, to = y * width;
      for (let x = 0; x < width; x++) out[to + x] += weight * wide[from + x];
    }
  return out;
}

// The pixel with the highest value among those whose centres the grid covers: (x, y) at pixel centres.
function peak(values, height, width, box) {
  const [x0, y0, x1, y1] = box;
  const top = Math.max(0, Math.ceil(y0 - 0.5)), bottom = Math.min(height, Math.floor(y1 - 0.5) + 1);
  const left = Math.max(0, Math.ceil(x0 - 0.5)), right = Math.min(width, Math.floor(x1 - 0.5) + 1);
  let best = -Infinity, place = [left + 0.5, top + 0.5];
  for (let y = top; y < bottom; y++)
    for (let x = left; x < right; x++)
      if (values[y * width + x] > best) { best = values[y * width + x]; place = [x + 0.5, y + 0.5]; }
  return place;
}

// COCO's compressed run-length code: runs down the columns, background first; 1 where the mask is.
function decodeMask(code) {
  const [height, width] = code.size, text = code.counts, counts = [];
  for (let p = 0; p < text.length;) {
    let x = 0, k = 0, more = true;
    while (more) {
      const c = text.charCodeAt(p++) - 48;
      x |= (c & 0x1f) << (5 * k++);
      more = (c & 0x20) !== 0;
      if (!more && c & 0x10) x |= -1 << (5 * k);
    }
    if (counts.length > 2) x += counts[counts.length - 2];
    counts.push(x);
  }
  const mask = new Uint8Array(height * width);
  let place = 0, value = 0;
  for (const run of counts) {
    for (let end = place + run; place < end; place++) if (value) mask[(place % height) * width + Math.floor(place / height)] = 1;
    value = 1 - value;
  }
  return mask;
}

// The visual token whose cell holds a point (x, y) in pixels; null outside of the grid.
function cellAt(grid, x, y) {
  const [x0, y0, x1, y1] = grid.box;
  const column = Math.floor(((x - x0) / (x1 - x0)) * grid.w), row = Math.floor(((y - y0) / (y1 - y0)) * grid.h);
  return row < 0 || column < 0 || row >= grid.h || column >= grid.w ? null : grid.index[row * grid.w + column];
}

// How strongly each token looked at a cell, as a share of its own brightest cell of the grid.
function lookedAt(maps, grid, cell) {
  return maps.map((map) => {
    const highest = Math.max(...grid.index.map((i) => map[i]));
    return highest > 0 ? Math.max(0, map[cell] / highest) : 0;
  });
}

const STOPS = [[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]]; // magma, which colour-blind readers can order

function colour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1), low = Math.min(Math.floor(at), STOPS.length - 2);
  return STOPS[low].map((value, i) => value + (at - low) * (STOPS[low + 1][i] - value));
}

const Explorer = { decodeMaps, normalized, aggregated, upsampled, peak, decodeMask, cellAt, lookedAt, colour };

if (typeof document !== "undefined") (function () {
  const answers = JSON.parse(document.getElementById("answers").textContent);
  const root = document.getElementById("explorer");
  const make = (name, properties = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(properties))
      key === "text" ? (element.textContent = value) : element.setAttribute(key, value);
    element.append(...children);
    return element;
  };
  const state = { answer: 0, tokens: [], normalization: "sequence", aggregation: "mean", opacity: 0.65, masks: true, place: null };
  let answer, maps, shown, picture, words = [], owner = [];

  const canvas = make("canvas", { role: "img", "aria-label": "the picture with the map of the chosen words; click a place to see which words looked there", tabindex: "0" });
  const read = make("p", { class: "read", "aria-live": "polite" });
  const prompt = make("p", { class: "prompt" });
  const text = make("p", { class: "answer", role: "group", "aria-label": "the answer; arrow keys move from word to word, Enter chooses one" });
  const chooser = make("select", { "aria-label": "answer" });
  answers.forEach((each, i) => chooser.append(make("option", { value: String(i), text: each.title })));
  const radios = (name, options) => {
    const box = make("fieldset", {}, make("legend", { text: name }));
    for (const [value, label] of options) {
      const input = make("input", { type: "radio", name, value });
      input.addEventListener("change", () => { state[name] = value; update(); });
      box.append(make("label", {}, input, make("span", { text: " " + label, "data-option": value })));
    }
    return box;
  };
  const normalization = radios("normalization", [["none", "none"], ["sequence", "minus the mean over the answer"]]);
  const aggregation = radios("aggregation", [["mean", "mean"], ["max", "maximum"], ["first", "first token"]]);
  const opacity = make("input", { type: "range", min: "0", max: "1", step: "0.05", "aria-label": "opacity of the map" });
  opacity.addEventListener("input", () => { state.opacity = Number(opacity.value); draw(); });
  const masks = make("input", { type: "checkbox" });
  masks.addEventListener("change", () => { state.masks = masks.checked; draw(); });
  const clear = make("button", { type: "button", text: "clear" });
  clear.addEventListener("click", () => { state.tokens = []; state.place = null; update(); });
  chooser.addEventListener("change", () => open(Number(chooser.value)));
  const controls = make("div", { class: "controls" }, normalization, aggregation, make("label", {}, "map ", opacity), make("label", {}, masks, " mask"), clear);
  root.append(
    make("section", { class: "card", "aria-label": "picture" }, canvas, read),
    make("section", { class: "card", "aria-label": "answer" }, ...(answers.length > 1 ? [make("p", {}, chooser)] : []), prompt, text, controls,
      make("p", { class: "help", text: "Click a word, or a coloured phrase, to see where the model looked when it said it; shift-click adds words. Click a place on the picture to see which words looked there. The bar under a word is the share of its attention that went to the picture." })));

  function open(number) {
    answer = answers[number];
    state.answer = number; state.tokens = []; state.place = null;
    Object.assign(state, { normalization: answer.chosen.normalization === "none" ? "none" : "sequence", aggregation: ["mean", "max", "first"].includes(answer.chosen.aggregation) ? answer.chosen.aggregation : "mean" });
    maps = decodeMaps(answer);
    const [height, width] = answer.size;
    canvas.width = width; canvas.height = height;
    canvas.style.setProperty("--ratio", String(width / height));
    prompt.textContent = `${answer.prompt}${answer.model ? `  (${answer.model})` : ""}`;
    owner = answer.tokens.map((span) => answer.phrases.findIndex((each) => span[1] > span[0] && span[0] < each.span[1] && span[1] > each.span[0]));
    words = answer.tokens.map((span, i) => {
      const said = answer.text.slice(span[0], span[1]).trim();
      if (!said) return null;
      const word = make("span", { class: "word", role: "button", tabindex: "-1", "aria-pressed": "false", text: said, "data-token": String(i) });
      if (owner[i] >= 0) word.style.setProperty("--of", answer.phrases[owner[i]].colour);
      const mass = answer.grid.index.reduce((sum, cell) => sum + maps[i][cell], 0);
      word.style.setProperty("--mass", String(Math.min(1, mass)));
      word.addEventListener("click", (event) => choose(i, event.shiftKey));
      word.addEventListener("keydown", (event) => onKey(event, i));
      return word;
    });
    text.replaceChildren();
    let end = 0;
    answer.tokens.forEach((span, i) => {
      if (!words[i]) return;
      const start = span[0] + answer.text.slice(span[0], span[1]).search(/\S/);
      if (start < end) { words[i] = null; return; } // pieces of one character: the first of them stands for it
      text.append(answer.text.slice(end, start), words[i]);
      end = start + words[i].textContent.length;
    });
    text.append(answer.text.slice(end));
    const first = words.find((word) => word);
    if (first) first.tabIndex = 0;
    picture = new Image();
    picture.onload = () => { draw(); };
    picture.src = answer.picture;
    update();
  }

  function choose(i, add) {
    const began = performance.now();
    const group = owner[i] >= 0 ? answer.phrases[owner[i]].tokens : [i];
    if (add) state.tokens = group.every((t) => state.tokens.includes(t)) ? state.tokens.filter((t) => !group.includes(t)) : [...state.tokens, ...group.filter((t) => !state.tokens.includes(t))];
    else state.tokens = group.slice();
    state.place = null;
    update();
    root.dataset.milliseconds = (performance.now() - began).toFixed(1);
  }

  function onKey(event, i) {
    const there = words.map((word, n) => (word ? n : -1)).filter((n) => n >= 0), at = there.indexOf(i);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step) {
      const next = words[there[Math.min(Math.max(at + step, 0), there.length - 1)]];
      words.forEach((word) => { if (word) word.tabIndex = -1; });
      next.tabIndex = 0; next.focus(); event.preventDefault();
    } else if (event.key === "Enter" || event.key === " ") { choose(i, event.shiftKey); event.preventDefault(); }
  }

  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    look(((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height);
  });

  function look(x, y) {
    if (cellAt(answer.grid, x, y) === null) return;
    state.place = [x, y]; state.tokens = [];
    update();
  }

  function update() {
    const own = normalized(maps, state.normalization), [height, width] = answer.size;
    for (const [box, name] of [[normalization, "normalization"], [aggregation, "aggregation"]])
      box.querySelectorAll("input").forEach((input) => {
        input.checked = input.value === state[name];
        input.nextSibling.classList.toggle("paper", input.value === answer.paper[name]);
      });
    opacity.value = String(state.opacity); masks.checked = state.masks;
    words.forEach((word, i) => {
      if (!word) return;
      word.setAttribute("aria-pressed", String(state.tokens.includes(i)));
      word.style.setProperty("--looked", "0");
    });
    shown = null;
    delete root.dataset.peak;
    if (state.tokens.length) {
      const values = upsampled(aggregated(own, state.tokens, state.aggregation), answer.grid, height, width, answer.grid.box);
      const point = peak(values, height, width, answer.grid.box);
      shown = { values, point, phrase: answer.phrases.find((each) => each.tokens.length === state.tokens.length && each.tokens.every((t) => state.tokens.includes(t))) };
      root.dataset.peak = point.join(",");
      read.textContent = `${state.tokens.map((t) => answer.text.slice(...answer.tokens[t]).trim()).join(" ")}: looked most at (${point[0]}, ${point[1]}) px${shown.phrase && shown.phrase.mask ? "" : "; no mask is kept for this choice"}.`;
    } else if (state.place) {
      const shares = lookedAt(own, answer.grid, cellAt(answer.grid, ...state.place));
      words.forEach((word, i) => { if (word) word.style.setProperty("--looked", (0.75 * shares[i]).toFixed(3)); });
      const order = shares.map((share, i) => [share, i]).filter(([share, i]) => words[i] && share > 0.3 && /[\p{L}\p{N}]/u.test(words[i].textContent)).sort((a, b) => b[0] - a[0]).slice(0, 6);
      root.dataset.looked = order.map(([, i]) => i).join(",");
      read.textContent = order.length ? `Looked here: ${order.map(([, i]) => answer.text.slice(...answer.tokens[i]).trim()).join(", ")}.` : "No word looked here.";
    } else read.textContent = "Choose a word, or a place on the picture.";
    root.dataset.tokens = state.tokens.join(",");
    draw();
  }

  function draw() {
    const context = canvas.getContext("2d", { willReadFrequently: true }), [height, width] = answer.size;
    context.clearRect(0, 0, width, height);
    if (picture && picture.complete && picture.naturalWidth) context.drawImage(picture, 0, 0, width, height);
    if (shown) {
      const layer = context.getImageData(0, 0, width, height), data = layer.data;
      let low = 0, high = 1e-12;
      for (const value of shown.values) { if (value > high) high = value; }
      const table = Array.from({ length: 256 }, (_, i) => colour(i / 255));
      for (let i = 0; i < shown.values.length; i++) {
        const share = Math.min(Math.max((shown.values[i] - low) / (high - low), 0), 1), ramp = table[Math.round(255 * share)];
        const a = state.opacity * (0.25 + 0.75 * share), grey = 0.65 * (0.3 * data[4 * i] + 0.59 * data[4 * i + 1] + 0.11 * data[4 * i + 2]);
        for (let c = 0; c < 3; c++) data[4 * i + c] = (1 - a) * (0.35 * data[4 * i + c] + grey) + a * ramp[c];
      }
      if (state.masks && shown.phrase && shown.phrase.mask) {
        const mask = (shown.mask ??= decodeMask(shown.phrase.mask)), edge = [255, 255, 255];
        for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
          const i = y * width + x;
          if (mask[i] && (x === 0 || y === 0 || x === width - 1 || y === height - 1 || !mask[i - 1] || !mask[i + 1] || !mask[i - width] || !mask[i + width]))
            edge.forEach((value, c) => { data[4 * i + c] = value; });
        }
      }
      context.putImageData(layer, 0, 0);
      dot(context, shown.point);
    } else if (state.place) dot(context, state.place);
  }

  function dot(context, [x, y]) {
    const radius = Math.max(4, canvas.width / 90);
    context.beginPath(); context.arc(x, y, radius, 0, 2 * Math.PI);
    context.fillStyle = "#fff"; context.fill(); context.lineWidth = radius / 2.5; context.strokeStyle = "#000"; context.stroke();
  }

  open(0);
  // A link may choose: #answer=1&token=4&normalization=none&place=30,40
  const asked = new URLSearchParams(location.hash.slice(1));
  if (answers[Number(asked.get("answer"))] && asked.get("answer")) { chooser.value = asked.get("answer"); open(Number(asked.get("answer"))); }
  if (["none", "sequence"].includes(asked.get("normalization"))) state.normalization = asked.get("normalization");
  if (["mean", "max", "first"].includes(asked.get("aggregation"))) state.aggregation = asked.get("aggregation");
  if (asked.get("token") !== null && answer.tokens[Number(asked.get("token"))]) choose(Number(asked.get("token")), false);
  else if (asked.get("place")) look(...asked.get("place").split(",").map(Number));
  else update();
  root.dataset.ready = "yes";
})();
