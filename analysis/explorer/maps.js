"use strict";
// What the explorer computes, as core does: pure functions on plain arrays, nothing of the page.

function decodeBytes(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

// Each token's map over all k visual tokens, from 16-bit shares of its highest value.
function decodeMaps({ maps, highest, k }) {
  const bytes = decodeBytes(maps), view = new DataView(bytes.buffer);
  return highest.map((most, t) =>
    Float64Array.from({ length: k }, (_, i) => (view.getUint16(2 * (t * k + i), true) / 65535) * most));
}

const TINY = 1.1754943508222875e-38; // the smallest normal float32

function meanMap(maps) {
  const mean = new Float64Array(maps[0].length);
  for (const map of maps) for (let i = 0; i < mean.length; i++) mean[i] += map[i] / maps.length;
  return mean;
}

// written: which tokens wrote something; baseline: the map of the prompt's words.
function normalized(maps, how, { written = [], baseline = null } = {}) {
  if (how === "none" || maps.length === 0) return maps;
  const counted = how === "words" ? maps.filter((_, t) => written[t]) : maps;
  const mean = how === "prompt" ? baseline : meanMap(counted.length ? counted : maps);
  if (how === "ratio") return maps.map((map) => map.map((value, i) => value / Math.max(mean[i], TINY)));
  return maps.map((map) => map.map((value, i) => value - mean[i]));
}

function aggregated(maps, tokens, how) {
  const order = [...tokens].sort((a, b) => a - b), out = maps[order[0]].slice();
  if (how === "first") return out;
  for (const t of order.slice(1))
    for (let i = 0; i < out.length; i++) out[i] = how === "mean" ? out[i] + maps[t][i] : Math.max(out[i], maps[t][i]);
  return how === "mean" ? out.map((value) => value / order.length) : out;
}

// Weights of the cells at each pixel centre: cubic convolution with -0.75, as torch's bicubic upsampling has it.
function resampler(cells, start, end, pixels) {
  const A = -0.75, lows = new Int32Array(pixels), taps = new Int32Array(4 * pixels), weights = new Float64Array(4 * pixels);
  const near = (d) => ((A + 2) * d - (A + 3)) * d * d + 1;
  const far = (d) => ((A * d - 5 * A) * d + 8 * A) * d - 4 * A;
  for (let p = 0; p < pixels; p++) {
    const position = ((p + 0.5 - start) * cells) / (end - start) - 0.5, low = Math.floor(position);
    lows[p] = low;
    for (let tap = 0; tap < 4; tap++) {
      const d = Math.abs(position - low - tap + 1);
      taps[4 * p + tap] = Math.min(Math.max(low + tap - 1, 0), cells - 1);
      weights[4 * p + tap] = d <= 1 ? near(d) : d < 2 ? far(d) : 0;
    }
  }
  return { lows, taps, weights };
}

function upsampled(map, { h, w, index, box }, height, width) {
  const [x0, y0, x1, y1] = box;
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

// A view of a picture drawn at another size: its box in pixels of the drawing.
function scaled(view, across, down) {
  const [x0, y0, x1, y1] = view.box;
  return { ...view, box: [x0 * across, y0 * down, x1 * across, y1 * down] };
}

// Runs of pixels with the same four cells: [from, to) within [start, end).
function runs(lows, start, end) {
  const found = [];
  for (let p = start; p < end; p++)
    if (p === start || lows[p] !== lows[p - 1]) found.push([p, p + 1]);
    else found[found.length - 1][1] = p + 1;
  return found;
}

const OVERSHOOT = 2 * 1.1875 * 0.1875; // of the cubic convolution beyond the values it weighs, as a share of their range

// The pixel of a height x width picture with the highest value of the upsampled map, among those whose centres the grid
// covers; the first in row order of equal ones. Only where the cells around could reach it are pixels computed.
function peakOf(map, { h, w, index, box }, height, width) {
  const [x0, y0, x1, y1] = box;
  const top = Math.max(0, Math.ceil(y0 - 0.5)), bottom = Math.min(height, Math.floor(y1 - 0.5) + 1);
  const left = Math.max(0, Math.ceil(x0 - 0.5)), right = Math.min(width, Math.floor(x1 - 0.5) + 1);
  const columns = resampler(w, x0, x1, width), rows = resampler(h, y0, y1, height), blocks = [];
  const across = runs(columns.lows, left, right);
  for (const [y, yEnd] of runs(rows.lows, top, bottom))
    for (const [x, xEnd] of across) {
      let low = Infinity, high = -Infinity;
      for (let i = 4 * y; i < 4 * y + 4; i++)
        for (let j = 4 * x; j < 4 * x + 4; j++) {
          const value = map[index[rows.taps[i] * w + columns.taps[j]]];
          if (value < low) low = value;
          if (value > high) high = value;
        }
      blocks.push({ bound: high + OVERSHOOT * (high - low) + 1e-9 * Math.max(Math.abs(high), Math.abs(low)), x, xEnd, y, yEnd });
    }
  blocks.sort((a, b) => b.bound - a.bound);
  let value = -Infinity, at = [left, top];
  for (const block of blocks) {
    if (block.bound < value) break;
    for (let x = block.x; x < block.xEnd; x++) {
      const line = [0, 1, 2, 3].map((i) => {
        const from = rows.taps[4 * block.y + i] * w;
        let sum = 0;
        for (let j = 4 * x; j < 4 * x + 4; j++) sum += columns.weights[j] * map[index[from + columns.taps[j]]];
        return sum;
      });
      for (let y = block.y; y < block.yEnd; y++) {
        let sum = 0;
        for (let i = 0; i < 4; i++) sum += rows.weights[4 * y + i] * line[i];
        if (sum > value || (sum === value && (y < at[1] || (y === at[1] && x < at[0])))) { value = sum; at = [x, y]; }
      }
    }
  }
  return { value, point: [at[0] + 0.5, at[1] + 0.5] };
}

// The same map with its corner cells at its lowest value, so that they never hold the peak.
function withoutCorners(map, { h, w, index }) {
  const out = map.slice(), low = index.reduce((least, cell) => Math.min(least, map[cell]), Infinity);
  for (const row of [0, h - 1]) for (const column of [0, w - 1]) out[index[row * w + column]] = low;
  return out;
}

// The prompt point (x, y) of some tokens, in pixels of the original: that of their aggregated map, or for "pixel_max"
// the highest of all their own.
function promptPoint(maps, tokens, how, view, [height, width], corners = true) {
  const order = [...tokens].sort((a, b) => a - b);
  const each = how === "pixel_max" ? order.map((t) => maps[t]) : [aggregated(maps, order, how)];
  const found = each.map((map) => peakOf(corners ? map : withoutCorners(map, view), view, height, width));
  const before = (a, b) => a.point[1] < b.point[1] || (a.point[1] === b.point[1] && a.point[0] < b.point[0]);
  return found.reduce((a, b) => (b.value > a.value || (b.value === a.value && before(b, a)) ? b : a)).point;
}

// COCO's compressed run-length code: runs down the columns, background first. As height x width pixels, 1 on the mask.
function decodeMask(code, height = code.size[0], width = code.size[1]) {
  const [tall, wide] = code.size, text = code.counts, counts = [], ends = [];
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
    ends.push((ends[ends.length - 1] ?? 0) + x);
  }
  const mask = new Uint8Array(height * width);
  let first = 0;
  for (let x = 0; x < width; x++) {
    const column = Math.floor(((x + 0.5) * wide) / width) * tall;
    while (first < ends.length && ends[first] <= column) first++;
    for (let y = 0, run = first; y < height; y++) {
      const at = column + Math.floor(((y + 0.5) * tall) / height);
      while (run < ends.length && ends[run] <= at) run++;
      mask[y * width + x] = run & 1;
    }
  }
  return mask;
}

// The visual token whose cell holds a point (x, y) in pixels; null outside of the grid.
function cellAt({ h, w, index, box }, x, y) {
  const [x0, y0, x1, y1] = box;
  const column = Math.floor(((x - x0) / (x1 - x0)) * w), row = Math.floor(((y - y0) / (y1 - y0)) * h);
  return row < 0 || column < 0 || row >= h || column >= w ? null : index[row * w + column];
}

// How strongly each token looked at a cell, as a share of its own brightest cell of the grid.
function lookedAt(maps, { index }, cell) {
  return maps.map((map) => {
    let highest = 0;
    for (const i of index) if (map[i] > highest) highest = map[i];
    return highest > 0 ? Math.max(0, map[cell] / highest) : 0;
  });
}

const STOPS = [[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]]; // magma, which colour-blind readers can order

function colour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (STOPS.length - 1), low = Math.min(Math.floor(at), STOPS.length - 2);
  return STOPS[low].map((value, i) => value + (at - low) * (STOPS[low + 1][i] - value));
}

const RAMP = Array.from({ length: 256 }, (_, i) => colour(i / 255));

// Tokens of another answer with the same text that share a character with some of this one's.
function sameWords(spans, tokens, others) {
  const own = tokens.map((t) => spans[t]).filter(([start, end]) => end > start);
  return others.map((_, t) => t).filter((t) => own.some(([start, end]) => others[t][0] < end && others[t][1] > start && others[t][1] > others[t][0]));
}
