"""Coverage: small models of many architectures, exported in four forms, raised and verified."""
