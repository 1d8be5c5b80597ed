// The explorer as a page of its own: its state is a plain object.

const told = JSON.parse(document.getElementById("answers").textContent);
const state = { answers: told.answers, known: told.known, can: [], answer: 0, beside: -1, tokens: [], place: [], opacity: 0.65, masks: true, show_gallery: false, busy: false, asked: "", written: "", status: "", head_maps: {}, gallery: {}, mask: {} };
const listeners = new Set();
const store = {
  live: false,
  get: (name) => state[name],
  set: (changes) => { Object.assign(state, changes); listeners.forEach((each) => each()); },
  listen: (callback) => { listeners.add(callback); return () => listeners.delete(callback); },
};
const begin = (number) => Object.assign(state, { answer: number }, told.answers[number].chosen);

// A link may choose: #answer=1&tokens=4,5&normalization=none&place=30,40
const asked = new URLSearchParams(location.hash.slice(1)), listed = (name) => (asked.get(name) ?? "").split(",").filter(Boolean).map(Number);
begin(told.answers[Number(asked.get("answer"))] ? Number(asked.get("answer")) : 0);
for (const name of ["normalization", "aggregation"]) if (told.known.choices[name].includes(asked.get(name))) state[name] = asked.get(name);
if (told.answers[Number(asked.get("beside") ?? -1)]) state.beside = Number(asked.get("beside"));
Object.assign(state, { tokens: listed("tokens"), place: listed("place"), show_gallery: asked.has("gallery") });
mountExplorer(document.getElementById("explorer"), store);
