"""AXPO: post-training of tool-using vision-language models (arXiv:2605.28774).

Importing `axpo` loads neither torch nor transformers. The algorithm alone lives in `axpo.algo`.
"""

__version__ = "0.1.0"
