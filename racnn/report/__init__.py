"""One HTML file about a network and the photos it was measured on, to look at, to send and to print."""
