"""Networks of EfficientTrain's papers that timm lacks; importing a module here registers its networks with timm."""
