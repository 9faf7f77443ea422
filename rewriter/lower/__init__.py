"""Lowering: forms are written once against an emitter; each target spells its operations."""
