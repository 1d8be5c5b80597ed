"""Procedural scenes: glyphs on textured backgrounds, with masks, descriptions and questions."""
