"""Where trials train: warm worker groups, the exchange that feeds them, the nodes that they are on."""
