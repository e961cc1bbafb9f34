"""Rewards: one file and one line each."""

TABLE = {"ocr": "branchgrpo.rewards.ocr:OcrReward"}
