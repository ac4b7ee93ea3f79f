
Q
'InceptionResnetV1/Conv2d_1a_3x3/weightsConst*
valueB
€€€€€€€€@
a
,InceptionResnetV1/Conv2d_1a_3x3/weights/readIdentity'InceptionResnetV1/Conv2d_1a_3x3/weights