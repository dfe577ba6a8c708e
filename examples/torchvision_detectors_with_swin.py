"""Some steps of torchvision's detectors with a Swin backbone: python -m examples.torchvision_detectors_with_swin"""

import torch
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from adapters.torchvision_detection import backbone

torch.manual_seed(0)
image = torch.rand(3, 128, 128) / 2
image[:, 32:96, 48:112] = 1.0  # one white square
targets = [{"boxes": torch.tensor([[48.0, 32.0, 112.0, 96.0]]), "labels": torch.tensor([1])}]

# backbone("swin_t", "imagenet1k") starts from the file that `python -m weights fetch torchvision_swin_t` brings.
pyramid = backbone("swin_t", stages=(2, 3, 4), extra_blocks=LastLevelP6P7(256, 256))
for model in (
    FasterRCNN(backbone("swin_t"), num_classes=2, min_size=128),
    RetinaNet(pyramid, num_classes=2, min_size=128),
):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for step in range(1, 4):
        loss = sum(model([image], targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"{type(model).__name__}, step {step}: loss {loss.item():.3f}")
