"""Model families: one file and one line each."""

REGISTRY = {
    "flux": "branchgrpo.models.flux:FluxModel",
    "flux_kontext": "branchgrpo.models.flux_kontext:FluxKontextModel",
    "sd3": "branchgrpo.models.sd3:SD3Model",
    "qwen_image": "branchgrpo.models.qwen_image:QwenImageModel",
    "qwen_image_edit": "branchgrpo.models.qwen_image_edit:QwenImageEditModel",
    "flux2_klein": "branchgrpo.models.flux2_klein:Flux2KleinModel",
    "z_image": "branchgrpo.models.z_image:ZImageModel",
    "wan": "branchgrpo.models.wan:WanModel",
    "wan_i2v": "branchgrpo.models.wan_i2v:WanI2VModel",
    "hunyuan_video": "branchgrpo.models.hunyuan_video:HunyuanVideoModel",
}
