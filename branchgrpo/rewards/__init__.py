"""Rewards: one file and one line each."""

REGISTRY = {
    "aesthetic": "branchgrpo.rewards.aesthetic:AestheticReward",
    "clip": "branchgrpo.rewards.clip:ClipReward",
    "hps": "branchgrpo.rewards.hps:HpsReward",
    "jpeg": "branchgrpo.rewards.jpeg:JpegReward",
    "pickscore": "branchgrpo.rewards.pickscore:PickScoreReward",
    "ocr": "branchgrpo.rewards.ocr:OcrReward",
    "remote": "branchgrpo.rewards.http.client:RemoteReward",
    "image_reward": "branchgrpo.rewards.image_reward:ImageRewardReward",
    "video_align": "branchgrpo.rewards.video_align:VideoAlignReward",
}
