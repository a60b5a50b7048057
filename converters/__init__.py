"""The workstation half: checkpoints to bundles. Needs torch and the converters."""
