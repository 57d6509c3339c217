"""What people see of a record: table, TensorBoard, progress, exported models, predictions."""
