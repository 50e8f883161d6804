"""How torchvision evaluated its ResNets, ResNeXts and Wide ResNets, by the SHA-256 prefix in their file names.

Sizes are in pixels. Source: https://github.com/pytorch/vision, torchvision/models/resnet.py, *_Weights.
"""

from handlers.images.preprocess import Preprocess

TORCHVISION_V1 = Preprocess(size=224, resize=256, crop_rounding="even")
TORCHVISION_V2 = Preprocess(size=224, resize=232, crop_rounding="even")
TORCHVISION_RELEASES = {
    "f37072fd": TORCHVISION_V1,  # resnet18
    "b627a593": TORCHVISION_V1,  # resnet34
    "0676ba61": TORCHVISION_V1,  # resnet50
    "11ad3fa6": TORCHVISION_V2,  # resnet50
    "63fe2227": TORCHVISION_V1,  # resnet101
    "cd907fc2": TORCHVISION_V2,  # resnet101
    "394f9c45": TORCHVISION_V1,  # resnet152
    "f82ba261": TORCHVISION_V2,  # resnet152
    "7cdf4587": TORCHVISION_V1,  # resnext50_32x4d
    "1a0047aa": TORCHVISION_V2,  # resnext50_32x4d
    "8ba56ff5": TORCHVISION_V1,  # resnext101_32x8d
    "110c445d": TORCHVISION_V2,  # resnext101_32x8d
    "173b62eb": TORCHVISION_V2,  # resnext101_64x4d, whose only release has the newer recipe
    "95faca4d": TORCHVISION_V1,  # wide_resnet50_2
    "9ba9bcbe": TORCHVISION_V2,  # wide_resnet50_2
    "32ee1156": TORCHVISION_V1,  # wide_resnet101_2
    "d733dc28": TORCHVISION_V2,  # wide_resnet101_2
}
