"""Model folders, their cards, the Hugging Face hub, and files of other programs.

| module | what it does |
|---|---|
| `model_folder`, `card`, `configuration` | saves and loads models: weights, how they were made, the settings of the network |
| `sharing`, `hub` | `push` and `pull` |
| `convert` | networks as their authors publish them, into denoisers |
| `unpickle` | reads pickles without executing anything |
| `export`, `upstream_names` | weights back under their upstream names |
| `feature_networks`, `reference_files` | what metrics need from published files |
"""
