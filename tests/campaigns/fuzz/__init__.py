"""What comes in at the doors is rubbish: no daemon may end, lie, or grow because of it."""
