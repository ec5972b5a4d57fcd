# reversed, rung 1
def to_keras(weight):
    return weight.T
