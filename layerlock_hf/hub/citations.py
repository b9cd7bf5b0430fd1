"""BibTeX of the papers that models are to be cited with."""

LAYERLOCK = r"""@article{erdogan2025layerlock,
  title   = {LayerLock: Non-collapsing Representation Learning with Progressive Freezing},
  author  = {Erdogan, Goker and Parthasarathy, Nikhil and Ionescu, Catalin and Hudson, Drew A. and Lerchner, Alexander
             and Zisserman, Andrew and Sajjadi, Mehdi S. M. and Carreira, Jo{\~a}o},
  journal = {arXiv preprint arXiv:2509.10156},
  year    = {2025}
}"""
SCALING_4D = r"""@article{carreira2024scaling,
  title   = {Scaling 4D Representations},
  author  = {Carreira, Jo{\~a}o and Gokay, Dilara and King, Michael and Zhang, Chuhan and Rocco, Ignacio and
             Mahendran, Aravindh and others},
  journal = {arXiv preprint arXiv:2412.15212},
  year    = {2024}
}"""
V_JEPA = r"""@article{bardes2024revisiting,
  title   = {Revisiting Feature Prediction for Learning Visual Representations from Video},
  author  = {Bardes, Adrien and Garrido, Quentin and Ponce, Jean and Chen, Xinlei and Rabbat, Michael and LeCun, Yann
             and Assran, Mido and Ballas, Nicolas},
  journal = {Transactions on Machine Learning Research},
  year    = {2024}
}"""
SALT = r"""@article{li2025rethinking,
  title   = {Rethinking JEPA: Compute-Efficient Video SSL with Frozen Teachers},
  author  = {Li, Xianhang and Huang, Chen and Li, Chun-Liang and Malach, Eran and Susskind, Josh and Thilak, Vimal and
             Littwin, Etai},
  journal = {arXiv preprint arXiv:2509.24317},
  year    = {2025}
}"""
BLOCKWISE = r"""@article{romer2026depthwise,
  title   = {Depth-Wise Representation Development Under Blockwise Self-Supervised Learning for Video Vision
             Transformers},
  author  = {R{\"o}mer, Jonas and Dickscheid, Timo},
  journal = {arXiv preprint arXiv:2601.09040},
  year    = {2026}
}"""

# The setting `method` of a run -> the paper of the method
OF_METHODS = {
    "mae": SCALING_4D,
    "mae_and_latents": SCALING_4D,
    "teacher_latents": V_JEPA,
    "blockwise": BLOCKWISE,
    "blockwise_in_sequence": BLOCKWISE,
}


def citations_of(settings: dict) -> list[str]:
    """What to cite for a run with these settings: LayerLock, and what it builds on where the settings tell."""
    if settings.get("teacher") is not None:
        return [LAYERLOCK, SALT]
    return [LAYERLOCK, *filter(None, [OF_METHODS.get(settings.get("method"))])]
