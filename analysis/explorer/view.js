// What the explorer shows and how it is used. Its state lives in a store with get(name), set(changes), listen(callback)
// and, where a kernel answers, live: a widget's traits there, a plain object on a page alone.

const LONG = 720; // pixels of the drawn picture on its long side; points are computed in those of the original
const LABELS = {
  normalization: "normalisation", sequence: "minus the mean over the answer", words: "minus the mean over its words", ratio: "divided by the mean over the answer", prompt: "minus the prompt's map", none: "none",
  aggregation: "a phrase's tokens", mean: "mean", max: "maximum", first: "first token", pixel_max: "maximum of pixels",
  view: "view", row: "row", predicting: "that predicts the token", self: "of the token itself",
  sam_prompt: "prompt of the segmenter", point: "point", mask: "map and box", mask_choice: "mask", last: "last", best: "best score", all: "all three",
};
const CONTROLS = ["normalization", "aggregation", "view", "row", "sam_prompt", "mask_choice", "layers", "heads"];

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties))
    key === "text" ? (element.textContent = value) : element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function mountExplorer(root, store) {
  root.classList.add("explorer");
  const get = (name) => store.get(name), set = (changes) => { began = performance.now(); store.set(changes); };
  const unpacked = new WeakMap(), normals = new WeakMap();
  let began = 0, waiting = false, gone = false, shown = null, words = [], owner = [], written = [];

  // --- the parts of the page ---
  const left = pane("the picture with the map of the chosen words; click a place to see which words looked there, or move there with the arrow keys");
  const right = pane("the same words as the other answer looked at them");
  const read = make("p", { class: "read", "aria-live": "polite" });
  const gallery = make("canvas", { class: "gallery", role: "img", tabindex: "0", "aria-label": "maps of every layer (rows) and head (columns); click one to use it, shift-click for its whole layer" });
  const galleryNote = make("p", { class: "help" });
  const drawer = make("details", { class: "card drawer" }, make("summary", { text: "Layers × heads" }), make("div", { class: "scroll" }, gallery), galleryNote);
  const chooser = make("select"), beside = make("select");
  const choosers = make("div", { class: "controls" }, make("label", {}, "answer ", chooser), make("label", {}, "beside ", beside));
  const prompt = make("p", { class: "prompt", dir: "auto" });
  const text = make("p", { class: "answer", dir: "auto", role: "group", "aria-label": "the answer; arrow keys move from word to word, with shift they add words" });
  const status = make("p", { class: "status", role: "status" });
  const selects = Object.fromEntries(CONTROLS.map((name) => [name, make("select", { "data-control": name })]));
  const labels = Object.fromEntries(CONTROLS.map((name) => [name, make("label", {}, make("span", { text: (LABELS[name] ?? name) + " " }), selects[name])]));
  const opacity = make("input", { type: "range", min: "0", max: "1", step: "0.05" });
  const masks = make("input", { type: "checkbox" }), corners = make("input", { type: "checkbox" });
  const clear = make("button", { type: "button", text: "clear" });
  const controls = make("div", { class: "controls" }, ...CONTROLS.map((name) => labels[name]),
    make("label", {}, corners, " no peak in the corners"), make("label", {}, "map ", opacity), make("label", {}, masks, " mask"), clear);
  const room = make("div", { class: "room" },
    make("div", { class: "side" },
      make("section", { class: "card picture", "aria-label": "picture" }, make("div", { class: "panes" }, left.figure, right.figure), read), drawer),
    make("div", { class: "side" },
      make("section", { class: "card said", "aria-label": "answer" }, choosers, prompt, text, status),
      make("section", { class: "card steering", "aria-label": "how it is grounded and drawn" }, controls,
        make("p", { class: "help", text: "Click a word, or a coloured phrase, to see where the model looked when it said it; shift-click adds words. Click a place on the picture to see which words looked there. The bar under a word is the share of its attention that went to the picture. A ring is the point that the record holds, where it is another." }))));
  root.replaceChildren(room);

  function pane(label) {
    const canvas = make("canvas", { role: "img", "aria-label": label, tabindex: "0" }), caption = make("figcaption", { dir: "auto" });
    return { canvas, caption, figure: make("figure", {}, canvas, caption), answer: null, base: null };
  }

  // --- what is asked of the state ---
  const answers = () => get("answers"), current = () => answers()[Math.min(get("answer"), answers().length - 1)];
  const other = () => answers()[get("beside")] ?? null;
  const state = () => Object.fromEntries(CONTROLS.concat("remove_corners").map((name) => [name, get(name)]));
  const decoded = (answer) => remembered(unpacked, answer, () => decodeMaps(answer));
  const viewOf = (answer, name) => answer.views.find((each) => each.name === name) ?? answer.views[answer.views.length - 1];
  const label = (answer) => answer.title || answer.prompt || "answer";

  function remembered(cache, key, compute) {
    if (!cache.has(key)) cache.set(key, compute());
    return cache.get(key);
  }

  // Token maps of the heads that are asked for, normalised; null where only a kernel has them and it has not told yet.
  function tokenMaps(answer, options) {
    let maps = null;
    if (same([options.layers, options.heads], [answer.chosen.layers, answer.chosen.heads])) maps = decoded(answer);
    else {
      const sent = get("head_maps");
      if (same(sent.for, [answers().indexOf(answer), options.layers, options.heads])) maps = remembered(unpacked, sent, () => decodeMaps(sent));
    }
    if (maps === null) return null;
    const known = remembered(normals, maps, () => new Map());
    if (!known.has(options.normalization)) {
      if (options.normalization === "prompt" && !answer.prompt_map) return null;
      known.set(options.normalization, normalized(maps, options.normalization, { written: answer.tokens.map(([a, b]) => b > a), baseline: answer.prompt_map && decodeMaps(answer.prompt_map)[0] }));
    }
    return known.get(options.normalization);
  }

  // A right-hand answer follows the controls, but for what tells it from the left-hand one.
  function optionsOf(answer) {
    const own = state();
    if (answer !== current()) for (const name of Object.keys(own)) if (!same(answer.chosen[name], current().chosen[name])) own[name] = answer.chosen[name];
    return own;
  }

  const phraseOf = (answer, tokens) => answer.phrases.findIndex((each) => same([...each.tokens].sort((a, b) => a - b), tokens));
  const sorted = () => [...get("tokens")].filter((t) => t < current().tokens.length).sort((a, b) => a - b);

  // Where an answer's tokens looked: the map to draw, its view, the point; null where it is not known.
  function lookOf(answer, tokens) {
    if (!tokens.length) return null;
    const options = optionsOf(answer), maps = tokenMaps(answer, options);
    if (maps) {
      const view = viewOf(answer, options.view);
      return { map: aggregated(maps, tokens, options.aggregation), view, point: promptPoint(maps, tokens, options.aggregation, view, answer.size, !options.remove_corners) };
    }
    return keptLook(answer, tokens, options);
  }

  // On a page alone a single head, or a layer, is shown from the kept gallery, as coarse as it was kept.
  function keptLook(answer, tokens, options) {
    const kept = galleryOf(answer, tokens);
    if (!kept || !same([options.normalization, options.aggregation], [answer.chosen.normalization, answer.chosen.aggregation])) return null;
    const map = new Float64Array(kept.h * kept.w), bytes = decodeBytes(kept.maps);
    const rows = options.layers.length ? options.layers : [...Array(kept.layers).keys()], columns = options.heads.length ? options.heads : [...Array(kept.heads).keys()];
    for (const layer of rows) for (const head of columns) {
      const at = layer * kept.heads + head;
      for (let i = 0; i < map.length; i++) map[i] += ((bytes[at * map.length + i] / 255) * kept.highest[at]) / (rows.length * columns.length);
    }
    const view = { h: kept.h, w: kept.w, box: viewOf(answer, options.view).box, index: [...map.keys()] };
    return { map, view, point: peakOf(map, view, ...answer.size).point, coarse: true };
  }

  function galleryOf(answer, tokens) {
    const sent = get("gallery"), options = optionsOf(answer);
    if (same(sent.for, [answers().indexOf(answer), tokens, options.normalization, options.aggregation, options.view])) return sent;
    const number = phraseOf(answer, tokens);
    return number >= 0 && answer.galleries ? answer.galleries[number] : null;
  }

  // Masks of the chosen tokens: those of the record where nothing differs from it, else the kernel's, else none.
  function masksOf(answer, tokens) {
    const options = optionsOf(answer);
    if (same(options, pick(answer.chosen, Object.keys(options)))) {
      const parts = answer.phrases.filter((each) => each.masks.length && each.tokens.every((t) => tokens.includes(t)));
      if (parts.length && same([...new Set(parts.flatMap((each) => each.tokens))].sort((a, b) => a - b), tokens)) return parts.flatMap((each) => each.masks);
    }
    const sent = get("mask");
    return answer === current() && same(sent.for, maskKey()) ? sent.codes : [];
  }

  const pick = (from, names) => Object.fromEntries(names.map((name) => [name, from[name]]));
  const maskKey = () => [get("answer"), sorted(), ...get("known").maps.map(get), ...get("known").kernel.map(get)];

  // --- drawing ---
  function load(pane, answer) {
    if (pane.answer === answer) return;
    pane.answer = answer; pane.base = null;
    if (!answer) return;
    const [height, width] = answer.size, scale = LONG / Math.max(height, width);
    pane.canvas.width = Math.max(1, Math.round(width * scale)); pane.canvas.height = Math.max(1, Math.round(height * scale));
    pane.canvas.style.setProperty("--ratio", String(width / height));
    const picture = new Image();
    picture.onload = () => {
      if (pane.answer !== answer || gone) return;
      const context = pane.canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(picture, 0, 0, pane.canvas.width, pane.canvas.height);
      pane.base = context.getImageData(0, 0, pane.canvas.width, pane.canvas.height);
      later();
      setTimeout(() => rehearse(pane));
    };
    picture.src = answer.picture;
  }

  function draw(pane, look, codes, ring) {
    const { canvas, base, answer } = pane;
    if (!base) return;
    const context = canvas.getContext("2d", { willReadFrequently: true }), { width, height } = canvas;
    const data = new Uint8ClampedArray(base.data), across = width / answer.size[1], down = height / answer.size[0];
    if (look) lay(data, upsampled(look.map, scaled(look.view, across, down), height, width), get("opacity"));
    if (get("masks")) for (const code of codes) outline(data, decodeMask(code, height, width), height, width);
    context.putImageData(new ImageData(data, width, height), 0, 0);
    if (ring) dot(context, [ring[0] * across, ring[1] * down], false);
    const place = look ? look.point : get("place");
    if (place.length) dot(context, [place[0] * across, place[1] * down], true);
  }

  // Draws a word where nobody sees it, so that the first click finds maps normalised and code compiled.
  function rehearse(pane) {
    const { answer, base } = pane;
    if (gone || !base || answer !== current() || !written.length) return;
    const { width, height } = base, data = new Uint8ClampedArray(base.data);
    for (const i of written.slice(0, 3)) {
      const look = lookOf(answer, [i]);
      if (look) lay(data, upsampled(look.map, scaled(look.view, width / answer.size[1], height / answer.size[0]), height, width), 0.5);
    }
    for (const phrase of answer.phrases.slice(0, 1)) for (const code of phrase.masks) outline(data, decodeMask(code, height, width), height, width);
  }

  function lay(data, values, strength) {
    let high = 1e-30;
    for (const value of values) if (value > high) high = value;
    for (let i = 0; i < values.length; i++) {
      const share = Math.max(values[i] / high, 0), ramp = RAMP[Math.round(255 * share)];
      const a = strength * (0.25 + 0.75 * share), grey = 0.65 * (0.3 * data[4 * i] + 0.59 * data[4 * i + 1] + 0.11 * data[4 * i + 2]);
      for (let c = 0; c < 3; c++) data[4 * i + c] = (1 - a) * (0.35 * data[4 * i + c] + grey) + a * ramp[c];
    }
  }

  // A white line along the mask's inner edge and a dark one around it, seen on every ground.
  function outline(data, mask, height, width) {
    const paint = (i, value) => { data[4 * i] = data[4 * i + 1] = data[4 * i + 2] = value; };
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
      const i = y * width + x, own = mask[i];
      const edge = (x > 0 && mask[i - 1] !== own) || (x < width - 1 && mask[i + 1] !== own) || (y > 0 && mask[i - width] !== own) || (y < height - 1 && mask[i + width] !== own);
      if (edge) { paint(i, own ? 255 : 0); if (own && x > 0 && mask[i - 1]) paint(i - 1, 255); if (own && y > 0 && mask[i - width]) paint(i - width, 255); }
    }
  }

  function dot(context, [x, y], full) {
    const radius = LONG / 90;
    context.beginPath(); context.arc(x, y, full ? radius : 1.8 * radius, 0, 2 * Math.PI);
    if (full) { context.fillStyle = "#fff"; context.fill(); }
    context.lineWidth = radius / 2.5; context.strokeStyle = full ? "#000" : "#fff"; context.stroke();
  }

  function drawGallery(kept) {
    drawer.hidden = !(kept || (store.live && current() && current().layers));
    if (!kept) { gallery.hidden = true; galleryNote.textContent = "Choose a word to see what each head does when it is said."; return; }
    const { layers, heads, h, w } = kept, bytes = decodeBytes(kept.maps);
    const side = Math.max(Math.min(Math.floor(560 / heads), 64), 12), tall = Math.max(1, Math.round((side * h) / w)), gap = 2;
    gallery.hidden = false;
    gallery.width = heads * (side + gap); gallery.height = layers * (tall + gap);
    const context = gallery.getContext("2d"), chosen = [get("layers"), get("heads")], tile = new ImageData(w, h), small = new OffscreenCanvas(w, h);
    for (let at = 0; at < layers * heads; at++) {
      for (let i = 0; i < h * w; i++) { const ramp = RAMP[bytes[at * h * w + i]]; for (let c = 0; c < 3; c++) tile.data[4 * i + c] = ramp[c]; tile.data[4 * i + 3] = 255; }
      small.getContext("2d").putImageData(tile, 0, 0);
      const layer = Math.floor(at / heads), head = at % heads, x = head * (side + gap), y = layer * (tall + gap);
      context.imageSmoothingEnabled = false;
      context.drawImage(small, x, y, side, tall);
      if ((chosen[0].length || chosen[1].length) && (!chosen[0].length || chosen[0].includes(layer)) && (!chosen[1].length || chosen[1].includes(head))) {
        context.strokeStyle = "#56b4e9"; context.lineWidth = 3; context.strokeRect(x + 1.5, y + 1.5, side - 3, tall - 3);
      }
    }
    Object.assign(gallery, { tile: [side + gap, tall + gap], shape: [layers, heads] });
    galleryNote.textContent = `${layers} layers (rows) × ${heads} heads, each in its own scale, ${h} × ${w} cells. Click one to use it alone, shift-click for its whole layer; arrow keys walk from head to head, Escape takes all again.`;
  }

  // --- text ---
  function spell(answer) {
    owner = answer.tokens.map((span) => answer.phrases.findIndex((each) => span[1] > span[0] && span[0] < each.span[1] && span[1] > each.span[0]));
    const maps = decoded(answer);
    text.replaceChildren();
    words = []; written = [];
    let end = 0;
    answer.tokens.forEach((span, i) => {
      const said = answer.text.slice(...span).trim(), start = span[0] + answer.text.slice(...span).search(/\S/);
      words.push(null);
      if (!said || start < end) return; // pieces of one character: the first of them stands for it
      const word = make("span", { class: "word", role: "button", tabindex: written.length ? "-1" : "0", "aria-pressed": "false", text: said, "data-token": String(i) });
      if (owner[i] >= 0) word.style.setProperty("--of", answer.phrases[owner[i]].colour);
      word.style.setProperty("--mass", String(Math.min(1, maps[i].reduce((sum, value) => sum + value, 0))));
      text.append(answer.text.slice(end, start), word);
      words[i] = word; written.push(i);
      end = start + said.length;
    });
    text.append(answer.text.slice(end));
  }

  const saidBy = (answer, tokens) => tokens.map((t) => answer.text.slice(...answer.tokens[t]).trim()).filter(Boolean).join(" ");

  function choose(i, add) {
    const group = owner[i] >= 0 ? current().phrases[owner[i]].tokens : [i], tokens = get("tokens");
    const more = group.filter((t) => !tokens.includes(t));
    set({ place: [], tokens: !add ? [...group] : more.length ? [...tokens, ...more] : tokens.filter((t) => !group.includes(t)) });
  }

  function lookAt(x, y) {
    if (cellAt(viewOf(current(), get("view")), x, y) !== null) set({ place: [x, y], tokens: [] });
  }

  // --- controls ---
  function fill(select, options, value) {
    const wanted = options.map(([key, said]) => [String(key), said]);
    if (!same(wanted, [...select.options].map((each) => [each.value, each.textContent])))
      select.replaceChildren(...wanted.map(([key, said]) => make("option", { value: key, text: said })));
    select.value = String(value);
  }

  function steer(answer) {
    const { choices, paper, kernel } = get("known"), heads = store.live ? answer.layers > 0 : Boolean(answer.galleries);
    const named = (name, value) => (LABELS[value] ?? value) + (paper[name] === value ? " (paper)" : "");
    for (const name of ["normalization", "aggregation", ...kernel]) {
      const own = choices[name].filter((value) => value !== "prompt" || answer.prompt_map);
      fill(selects[name], own.map((value) => [value, named(name, value)]), get(name));
    }
    fill(selects.view, answer.views.map((each, i) => [i === answer.views.length - 1 ? "" : each.name, each.name + (i === answer.views.length - 1 ? " (paper)" : "")]), get("view"));
    for (const [name, count] of [["layers", answer.layers], ["heads", answer.heads]]) {
      const several = get(name).length > 1 || (get(name)[0] ?? 0) < 0 ? [[get(name).join(), get(name).join(", ")]] : [];
      fill(selects[name], [["", "all (paper)"], ...several, ...[...Array(count).keys()].map((i) => [i, String(i)])], get(name).join());
      labels[name].hidden = !heads;
    }
    kernel.forEach((name) => { labels[name].hidden = !get("can").includes(name); });
    labels.view.hidden = answer.views.length < 2;
    opacity.value = String(get("opacity")); masks.checked = get("masks"); corners.checked = get("remove_corners");
    fill(chooser, answers().map((each, i) => [i, label(each)]), get("answer"));
    const alike = answers().map((each, i) => [i, `${label(each)} · ${each.model}`, each]).filter(([i, , each]) => each !== answer && each.text === answer.text && same(each.size, answer.size));
    fill(beside, [[-1, "nothing"], ...alike.map(([i, said]) => [i, said])], get("beside"));
    chooser.parentElement.hidden = answers().length < 2; beside.parentElement.hidden = !alike.length;
  }

  CONTROLS.forEach((name) => selects[name].addEventListener("change", () => {
    const value = selects[name].value, indices = name === "layers" || name === "heads";
    set({ [name]: indices ? (value === "" ? [] : value.split(",").map(Number)) : value });
  }));
  opacity.addEventListener("input", () => set({ opacity: Number(opacity.value) }));
  masks.addEventListener("change", () => set({ masks: masks.checked }));
  corners.addEventListener("change", () => set({ remove_corners: corners.checked }));
  clear.addEventListener("click", () => set({ tokens: [], place: [] }));
  chooser.addEventListener("change", () => open(Number(chooser.value)));
  beside.addEventListener("change", () => set({ beside: Number(beside.value) }));
  drawer.addEventListener("toggle", () => set({ show_gallery: drawer.open }));

  // Another answer, grounded as it was made.
  function open(number) {
    set({ answer: number, beside: -1, tokens: [], place: [], ...pick(answers()[number].chosen, Object.keys(state())) });
  }

  text.addEventListener("click", (event) => {
    const word = event.target.closest(".word");
    if (word) choose(Number(word.dataset.token), event.shiftKey);
  });
  text.addEventListener("keydown", (event) => {
    const word = event.target.closest(".word");
    if (!word) return;
    const at = written.indexOf(Number(word.dataset.token)), step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step) {
      const next = written[Math.min(Math.max(at + step, 0), written.length - 1)];
      written.forEach((i) => { words[i].tabIndex = i === next ? 0 : -1; });
      words[next].focus();
      choose(next, event.shiftKey);
    } else if (event.key === "Enter" || event.key === " ") choose(written[at], event.shiftKey);
    else if (event.key === "Escape") set({ tokens: [], place: [] });
    else return;
    event.preventDefault(); event.stopPropagation();
  });
  left.canvas.addEventListener("click", (event) => {
    if (!current()) return;
    const box = left.canvas.getBoundingClientRect(), [height, width] = current().size;
    lookAt(((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height);
  });
  left.canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [1, 0], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowUp: [0, -1] }[event.key];
    if (!step || !current()) return;
    const { box, w, h } = viewOf(current(), get("view")), [height, width] = current().size, place = get("place");
    const [x, y] = place.length ? place : [width / 2, height / 2], moves = place.length ? step : [0, 0];
    lookAt(x + (moves[0] * (box[2] - box[0])) / w, y + (moves[1] * (box[3] - box[1])) / h);
    event.preventDefault(); event.stopPropagation();
  });
  gallery.addEventListener("click", (event) => {
    const box = gallery.getBoundingClientRect(), [wide, tall] = gallery.tile;
    const head = Math.floor(((event.clientX - box.left) * gallery.width) / box.width / wide), layer = Math.floor(((event.clientY - box.top) * gallery.height) / box.height / tall);
    set({ layers: [layer], heads: event.shiftKey ? [] : [head] });
  });
  gallery.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowUp: [-1, 0] }[event.key];
    if (event.key === "Escape") set({ layers: [], heads: [] });
    else if (step) {
      const [layers, heads] = gallery.shape, within = (value, size) => [Math.min(Math.max(value, 0), size - 1)];
      set({ layers: within((get("layers")[0] ?? -step[0]) + step[0], layers), heads: within((get("heads")[0] ?? -step[1]) + step[1], heads) });
    } else return;
    event.preventDefault(); event.stopPropagation();
  });

  // --- showing the state ---
  function refresh() {
    if (gone) return;
    const answer = current();
    status.textContent = get("status");
    root.dataset.status = get("status");
    text.toggleAttribute("aria-busy", get("busy"));
    root.classList.toggle("writing", get("busy"));
    if (get("busy")) { shown = null; prompt.textContent = get("asked"); text.textContent = get("written") || "…"; return done(); }
    if (!answer) { root.classList.add("empty"); text.textContent = "Nothing has been asked yet."; return done(); }
    root.classList.remove("empty");
    if (shown !== answer) { shown = answer; spell(answer); prompt.textContent = `${answer.prompt}${answer.model ? `  (${answer.model})` : ""}`; }
    steer(answer);
    load(left, answer); load(right, other());
    right.figure.hidden = !other(); room.classList.toggle("paired", Boolean(other()));
    left.caption.textContent = other() ? `${label(answer)} · ${answer.model}` : "";
    right.caption.textContent = other() ? `${label(other())} · ${other().model}` : "";
    const tokens = sorted(), look = lookOf(answer, tokens), place = get("place"), codes = masksOf(answer, tokens);
    const shares = place.length && !tokens.length ? looked(answer, place) : [];
    written.forEach((i) => {
      const pressed = String(tokens.includes(i)), glow = shares.length ? (0.75 * shares[i]).toFixed(3) : "0";
      if (words[i].getAttribute("aria-pressed") !== pressed) words[i].setAttribute("aria-pressed", pressed);
      if (words[i].style.getPropertyValue("--looked") !== glow) words[i].style.setProperty("--looked", glow);
    });
    const kept = phraseOf(answer, tokens), recorded = kept >= 0 ? answer.phrases[kept].point : null;
    const ring = look && recorded && Math.hypot(look.point[0] - recorded[0], look.point[1] - recorded[1]) > 1.5 ? recorded : null;
    draw(left, look, codes, ring);
    if (other()) { const theirs = sameWords(answer.tokens, tokens, other().tokens); draw(right, lookOf(other(), theirs), masksOf(other(), theirs), null); }
    if (drawer.open !== get("show_gallery")) drawer.open = get("show_gallery");
    drawGallery(tokens.length ? galleryOf(answer, tokens) : null);
    tell(answer, tokens, look, codes, ring, shares);
    done();
  }

  function looked(answer, place) {
    const options = optionsOf(answer), maps = tokenMaps(answer, options), view = viewOf(answer, options.view), cell = cellAt(view, ...place);
    return maps && cell !== null ? lookedAt(maps, view, cell) : [];
  }

  function tell(answer, tokens, look, codes, ring, shares) {
    root.dataset.tokens = tokens.join(); root.dataset.peak = look ? look.point.join() : ""; root.dataset.masks = String(codes.length);
    root.dataset.looked = "";
    const kept = phraseOf(answer, tokens), said = kept >= 0 ? answer.text.slice(...answer.phrases[kept].span) : saidBy(answer, tokens);
    if (look) {
      const mass = tokens.reduce((sum, t) => sum + decoded(answer)[t].reduce((all, value) => all + value, 0), 0) / tokens.length;
      const notes = [`${said}: looked most at (${look.point.map((x) => x.toFixed(1)).join(", ")}) px; ${(100 * mass).toFixed(1)} % of its attention is on the picture.`];
      if (look.coarse) notes.push("From the heads' maps as this page keeps them, coarse.");
      if (ring) notes.push(`The record's point, the ring, is at (${ring.map((x) => x.toFixed(1)).join(", ")}) px${answer.note ? `: ${answer.note}` : ""}.`);
      if (!codes.length && get("masks")) notes.push(get("can").includes("mask_choice") ? "The mask is on its way." : "No mask is kept for this choice.");
      read.textContent = notes.join(" ");
    } else if (tokens.length) read.textContent = store.live ? `${said}: the maps of these heads are on their way.` : `${said}: no map is kept for this choice; take all layers and heads, or a phrase with the normalisation and aggregation that it was kept with.`;
    else if (get("place").length) {
      const order = written.filter((i) => shares[i] > 0.3 && /[\p{L}\p{N}]/u.test(words[i].textContent)).sort((a, b) => shares[b] - shares[a]).slice(0, 6);
      root.dataset.looked = order.join();
      read.textContent = order.length ? `Looked here: ${order.map((i) => words[i].textContent).join(", ")}.` : "No word looked here.";
    } else read.textContent = "Choose a word, or a place on the picture.";
  }

  function done() {
    root.dataset.ready = left.base || !current() ? "yes" : "";
    root.dataset.drawn = String(Number(root.dataset.drawn ?? 0) + 1);
    if (began) { root.dataset.milliseconds = (performance.now() - began).toFixed(1); began = 0; }
  }

  function later() {
    if (waiting) return;
    waiting = true;
    queueMicrotask(() => { waiting = false; refresh(); });
  }

  const stop = store.listen(later);
  refresh();
  return () => { gone = true; stop(); };
}
