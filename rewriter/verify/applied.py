"""What a model file says about its own rewritten sites."""

from __future__ import annotations

import json

from rewriter.program.program import Program
from rewriter.verify.validation import AppliedForm

__all__ = ["SITES", "applied_forms"]

SITES = "rewriter.sites"
"""Key of the metadata: a JSON object, site -> what was written about its replacement."""


def applied_forms(program: Program) -> tuple[AppliedForm, ...]:
    """Return the forms that the metadata of a program records.

    A form without a fidelity is taken for an approximation: exactness is claimed, never assumed.
    Metadata that is not what this tool writes is no claim at all and is passed over.
    """
    try:
        records = json.loads(program.metadata.get(SITES, "{}"))
    except ValueError:
        return ()
    if not isinstance(records, dict):
        return ()
    return tuple(
        AppliedForm(
            site=str(site),
            form=str(record.get("form", "unknown")),
            fidelity=str(record.get("fidelity", "unknown")),
            details={str(k): v for k, v in record.items() if k not in ("form", "fidelity")},
        )
        for site, record in records.items()
        if isinstance(record, dict)
    )
