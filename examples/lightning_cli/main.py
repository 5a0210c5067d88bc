import lightning_invariance  # noqa: F401
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from torch import nn


class Net(LightningModule):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

    def forward(self, x):
        return self.network(x)

    def training_step(self, b, i):
        return nn.functional.cross_entropy(self(b[0]), b[1])

    def validation_step(self, b, i):
        self.log("val/loss", nn.functional.cross_entropy(self(b[0]), b[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


class Data(LightningDataModule):
    def _l(self):
        return torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.randn(64, 1, 8, 8), torch.arange(64) % 10), batch_size=16
        )

    train_dataloader = val_dataloader = _l


if __name__ == "__main__":
    LightningCLI(Net, Data)
