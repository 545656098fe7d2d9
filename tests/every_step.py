"""Every kind of training step that behaves differently: kind of phase, its scales, what else is set."""

PHASES = [
    ("classification", (1, 2, 3), {}),
    ("classification", (2,), {}),
    ("apn_init", (1,), {}),
    ("apn_init", (2,), {"target": "peak"}),
    ("ranking", (1, 2), {"gradient": "exact"}),
    ("ranking", (1, 2), {"gradient": "mask"}),
    ("ranking", (1, 2), {"gradient": "energy"}),
    ("ranking", (1, 2), {"gradient": "smoothed", "compare": "log_prob"}),
    ("fusion", (), {}),
]
