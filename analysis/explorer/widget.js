// The explorer in a notebook: its state is the widget's traits, so that code can read and set all that is shown.

export default {
  render({ model, el }) {
    const root = document.createElement("div");
    el.append(root);
    return mountExplorer(root, {
      get live() { return model.get("live"); },
      get: (name) => model.get(name),
      set: (changes) => { for (const [name, value] of Object.entries(changes)) model.set(name, value); model.save_changes(); },
      listen: (callback) => { model.on("change", callback); return () => model.off("change", callback); },
    });
  },
};
