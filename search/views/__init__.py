"""Views of a study's record: table, TensorBoard, progress display, model folders and predictions."""
