"""Rewards: one file and one line each."""

REGISTRY = {
    "aesthetic": "branchgrpo.rewards.aesthetic:AestheticReward",
    "colour": "branchgrpo.rewards.colour:ColourReward",
    "clip": "branchgrpo.rewards.clip:ClipReward",
    "geneval": "branchgrpo.rewards.geneval.options:GenEvalReward",
    "hps": "branchgrpo.rewards.hps:HpsReward",
    "hpsv3": "branchgrpo.rewards.hpsv3:HpsV3Reward",
    "jpeg": "branchgrpo.rewards.jpeg:JpegReward",
    "judge": "branchgrpo.rewards.judge.options:JudgeReward",
    "pairwise": "branchgrpo.rewards.pairwise:PairwiseReward",
    "pickscore": "branchgrpo.rewards.pickscore:PickScoreReward",
    "ocr": "branchgrpo.rewards.ocr:OcrReward",
    "remote": "branchgrpo.rewards.http.client:RemoteReward",
    "image_reward": "branchgrpo.rewards.image_reward:ImageRewardReward",
    "video_align": "branchgrpo.rewards.video_align:VideoAlignReward",
}
