"""Both ways between this project's runs and PyTorch: names, export with its own check, import, and a PyTorch port."""
