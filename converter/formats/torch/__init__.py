"""PyTorch's format: state_dicts as torch.save writes them."""
