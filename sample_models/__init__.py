"""Small real models with the recipes that trained them, and loaders for published ones.

Run from the repository's root: `python -m sample_models.minilm DEST`, or as references on the
command line: `sample_models.fashion_vit.model:build --weights sample_models/fashion_vit/...`.
"""
