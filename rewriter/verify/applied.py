"""What a model file says about its own rewritten sites."""

from __future__ import annotations

import json
import re

from rewriter.program.program import Program
from rewriter.sites.site import KINDS
from rewriter.verify.validation import AppliedForm

__all__ = ["SITES", "applied_forms"]

SITES = "rewriter.sites"
"""Key of the metadata: a JSON object, site -> what was written about its replacement."""


def applied_forms(program: Program) -> tuple[AppliedForm, ...]:
    """Return the forms that the metadata of a program records.

    A form without a fidelity is taken for an approximation: exactness is claimed, never assumed.
    Metadata that is not what this tool writes is no claim at all and is passed over. Sites go by their ids,
    which a graph holds as identifiers (``linear_attention_0``).
    """
    try:
        records = json.loads(program.metadata.get(SITES, "{}"))
    except ValueError:
        return ()
    if not isinstance(records, dict):
        return ()
    return tuple(
        AppliedForm(
            site=_site_id(str(site)),
            form=str(record.get("form", "unknown")),
            fidelity=str(record.get("fidelity", "unknown")),
            details={str(k): v for k, v in record.items() if k not in ("form", "fidelity")},
        )
        for site, record in records.items()
        if isinstance(record, dict)
    )


def _site_id(key: str) -> str:
    """Return the id that an identifier of a graph was made of; any other key as it is.

    >>> _site_id("linear_attention_12"), _site_id("attention.3"), _site_id("block_3")
    ('linear-attention.12', 'attention.3', 'block_3')
    """
    kinds = {kind.replace("-", "_"): kind for kind in KINDS}
    match = re.fullmatch(r"(\w+)_(\d+)", key)
    return f"{kinds[match[1]]}.{match[2]}" if match is not None and match[1] in kinds else key
