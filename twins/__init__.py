"""The application: comparing, training, predicting and exporting networks, in both frameworks."""
