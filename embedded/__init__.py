"""The workshop of the embedded family: it draws the scenes, writes their texts, and trains the small models of the real
classes that the package ships (`core.weights`). Nothing in `core` needs it.
"""
