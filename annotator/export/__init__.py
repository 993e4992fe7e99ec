"""Labels and answers for training scripts and for papers.

One row per active face: `csv`, `parquet` (and beside each, `<name>.answers.<ext>` with one row per answer), `jsonl`
(answers nested). `imagefolder` copies the labeled faces into class folders; `ferplus` writes the FER+ vote file with
its images. What the columns mean is said in `annotator.export.rows`.
"""

from annotator.export.write import FORMATS, Format, export

__all__ = ["FORMATS", "Format", "export"]
