"""Model families: one file and one line each."""

REGISTRY = {
    "flux": "branchgrpo.models.flux:FluxModel",
    "sd3": "branchgrpo.models.sd3:SD3Model",
    "qwen_image": "branchgrpo.models.qwen_image:QwenImageModel",
    "wan": "branchgrpo.models.wan:WanModel",
}
