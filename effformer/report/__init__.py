"""Run folders -> tables and plots: `python -m effformer.report runs/...`.

    runs        what lies in a run folder
    groups      runs that differ in their seed only, and their scores
    published   figures of papers, with their source; never mixed with ours
    tables      the tables
    efficiency  speed and memory over the number of tokens
    found       files of modes, wherever they lie
    compression compressed models beside their parents
    plots       the plots (matplotlib, the extra `plots`)
    document    headings, texts, tables and pictures, as Markdown and as HTML

Reads files only, by the parts of `train` that know them: no jax, no checkpoint,
no data.
"""
